// Makes each call that `guard` hooks, and says how it ended: a line "NAME RESULT [key=value ...]" for each argument
// "NAME[:ARGUMENT]", where RESULT is "ok" or the error. test_guard.py compiles it, statically, and brings it to the guest.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static char note[256];

static int fork_waiting(void)
{
	const int child = fork();
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	return child;
}

static void end(int child)
{
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

// What a child's call came to: its errno is its exit status.
static int in_child(int (*call)(const char *), const char *argument)
{
	int status;
	const int child = fork();
	if (child == 0)
		_exit(call(argument) < 0 ? errno : 0);
	waitpid(child, &status, 0);
	snprintf(note, sizeof note, "child=%d", child);
	errno = WEXITSTATUS(status);
	return errno ? -1 : 0;
}

static int do_fork(const char *argument)
{
	const int child = fork_waiting();
	snprintf(note, sizeof note, "child=%d", child);
	end(child);
	return child;
}

static int end_with(const char *argument)
{
	_exit(atoi(argument));
}
static int do_exit(const char *argument)
{
	in_child(end_with, argument);
	return 0;
}

static int start(const char *path)
{
	return execl(path, path, "first", "second word", (char *)NULL);
}
static int do_exec(const char *path)
{
	return in_child(start, path);
}

static int do_open(const char *path)
{
	const int fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? fd : close(fd);
}
static int do_open_to_write(const char *path)
{
	const int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	return fd < 0 ? fd : close(fd);
}

static int do_unlink(const char *path)
{
	return unlink(path);
}
static int do_rmdir(const char *path)
{
	return rmdir(path);
}
static int do_rename(const char *path)
{
	char to[256];
	snprintf(to, sizeof to, "%s.new", path);
	return rename(path, to);
}

static int do_mount(const char *path)
{
	if (mount("some-name", path, "tmpfs", MS_NOSUID, NULL) < 0)
		return -1;
	return umount(path);
}
// The mount at PATH.from goes to PATH.to.
static int do_move_mount(const char *path)
{
	char from[256], to[256];
	snprintf(from, sizeof from, "%s.from", path);
	snprintf(to, sizeof to, "%s.to", path);
	return syscall(SYS_move_mount, AT_FDCWD, from, AT_FDCWD, to, 0);
}

static int do_module(const char *path)
{
	const int fd = open(path, O_RDONLY | O_CLOEXEC);
	const int result = syscall(SYS_finit_module, fd, "", 0), error = errno;
	close(fd);
	errno = error;
	return result;
}
static int do_module_from_memory(const char *path)
{
	static char image[4 << 20];
	const int fd = open(path, O_RDONLY | O_CLOEXEC);
	const ssize_t size = read(fd, image, sizeof image);
	close(fd);
	return size <= 0 ? -1 : syscall(SYS_init_module, image, (unsigned long)size, "");
}

// The file is no kernel: ENOEXEC, where it is looked at.
static int do_kexec(const char *path)
{
	const int fd = open(path, O_RDONLY | O_CLOEXEC);
	const int result = syscall(SYS_kexec_file_load, fd, -1, 1UL, "", 4UL /* KEXEC_FILE_NO_INITRAMFS */), error = errno;
	close(fd);
	errno = error;
	return result;
}
static int do_kexec_from_memory(const char *argument) // nothing, which takes away what was loaded
{
	return syscall(SYS_kexec_load, 0UL, 0UL, NULL, 0UL);
}

// "PORT", "6/PORT" or a path.
static socklen_t address_of(const char *text, struct sockaddr_storage *address)
{
	memset(address, 0, sizeof *address);
	if (text[0] == '/') {
		struct sockaddr_un *un = (void *)address;
		un->sun_family = AF_UNIX;
		strcpy(un->sun_path, text);
		return sizeof *un;
	}
	if (text[1] == '/') {
		struct sockaddr_in6 *v6 = (void *)address;
		v6->sin6_family = AF_INET6;
		v6->sin6_addr = in6addr_loopback;
		v6->sin6_port = htons(atoi(text + 2));
		return sizeof *v6;
	}
	struct sockaddr_in *v4 = (void *)address;
	v4->sin_family = AF_INET;
	v4->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	v4->sin_port = htons(atoi(text));
	return sizeof *v4;
}

static int with_socket(const char *text, int type, int (*call)(int, const struct sockaddr *, socklen_t))
{
	struct sockaddr_storage address;
	const socklen_t length = address_of(text, &address);
	const int fd = socket(address.ss_family, type | SOCK_CLOEXEC, 0);
	const int result = call(fd, (void *)&address, length), error = errno;
	close(fd);
	errno = error;
	return result;
}
static int do_connect(const char *text) // nobody listens: ECONNREFUSED, or ENOENT
{
	return with_socket(text, SOCK_STREAM, connect);
}
static int do_connect_udp(const char *text)
{
	return with_socket(text, SOCK_DGRAM, connect);
}
static int do_bind(const char *text)
{
	return with_socket(text, SOCK_STREAM, bind);
}
static int listen_at(int fd, const struct sockaddr *address, socklen_t length)
{
	return bind(fd, address, length) < 0 ? -1 : listen(fd, 17);
}
static int do_listen(const char *text)
{
	return with_socket(text, SOCK_STREAM, listen_at);
}
static int accept_at(int fd, const struct sockaddr *address, socklen_t length) // EAGAIN: nobody came
{
	return listen_at(fd, address, length) < 0 ? -1 : accept(fd, NULL, NULL);
}
static int do_accept(const char *text)
{
	return with_socket(text, SOCK_STREAM | SOCK_NONBLOCK, accept_at);
}

static int change_user(const char *text)
{
	return setresuid(atoi(text), atoi(text), atoi(text));
}
static int do_setuid(const char *text)
{
	return in_child(change_user, text);
}
static int change_group(const char *text)
{
	return setresgid(atoi(text), atoi(text), atoi(text));
}
static int do_setgid(const char *text)
{
	return in_child(change_group, text);
}
static int drop_capabilities(const char *text)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	const uint32_t kept = strtoul(text, NULL, 0);
	struct __user_cap_data_struct data[2] = {{kept, kept, 0}, {0}};
	return syscall(SYS_capset, &header, data);
}
static int do_capset(const char *text)
{
	return in_child(drop_capabilities, text);
}

static int do_ptrace(const char *argument)
{
	const int child = fork_waiting();
	const int result = ptrace(PTRACE_ATTACH, child, NULL, NULL), error = errno;
	snprintf(note, sizeof note, "child=%d", child);
	if (result == 0) {
		waitpid(child, NULL, 0);
		ptrace(PTRACE_DETACH, child, NULL, NULL);
	}
	end(child);
	errno = error;
	return result;
}
static int be_traced(const char *argument)
{
	return ptrace(PTRACE_TRACEME, 0, NULL, NULL);
}
static int do_traceme(const char *argument)
{
	return in_child(be_traced, argument);
}
static int do_write_memory(const char *argument)
{
	static volatile char theirs;
	char ours = 'x';
	const struct iovec from = {&ours, 1}, to = {(void *)&theirs, 1};
	const int child = fork_waiting();
	const int result = process_vm_writev(child, &from, 1, &to, 1, 0), error = errno;
	snprintf(note, sizeof note, "child=%d", child);
	end(child);
	errno = error;
	return result;
}

static int do_bpf(const char *name)
{
	const struct bpf_insn code[] = {{.code = BPF_ALU64 | BPF_MOV | BPF_K}, {.code = BPF_JMP | BPF_EXIT}};
	union bpf_attr attributes = {.prog_type = BPF_PROG_TYPE_SOCKET_FILTER,
				     .insns = (uintptr_t)code,
				     .insn_cnt = 2,
				     .license = (uintptr_t) "GPL"};
	strncpy(attributes.prog_name, name, BPF_OBJ_NAME_LEN - 1);
	const int fd = syscall(SYS_bpf, BPF_PROG_LOAD, &attributes, sizeof attributes);
	return fd < 0 ? fd : close(fd);
}
static int do_bpf_map(const char *name) // another command of bpf(2), which is not hooked
{
	union bpf_attr attributes = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1};
	const int fd = syscall(SYS_bpf, BPF_MAP_CREATE, &attributes, sizeof attributes);
	return fd < 0 ? fd : close(fd);
}

static int do_io_uring(const char *argument)
{
	char parameters[256] = {0}; // struct io_uring_params, which old headers do not have
	const int fd = syscall(425 /* io_uring_setup */, 4, parameters);
	return fd < 0 ? fd : close(fd);
}

static const struct {
	const char *name;
	int (*run)(const char *);
} calls[] = {
	{"fork", do_fork}, {"exit", do_exit}, {"exec", do_exec}, {"open", do_open}, {"open_to_write", do_open_to_write},
	{"unlink", do_unlink}, {"rmdir", do_rmdir}, {"rename", do_rename}, {"mount", do_mount},
	{"move_mount", do_move_mount}, {"module", do_module}, {"module_from_memory", do_module_from_memory},
	{"kexec", do_kexec}, {"kexec_from_memory", do_kexec_from_memory}, {"connect", do_connect},
	{"connect_udp", do_connect_udp}, {"bind", do_bind}, {"listen", do_listen}, {"accept", do_accept},
	{"setuid", do_setuid}, {"setgid", do_setgid}, {"capset", do_capset}, {"ptrace", do_ptrace},
	{"traceme", do_traceme}, {"write_memory", do_write_memory}, {"bpf", do_bpf}, {"bpf_map", do_bpf_map},
	{"io_uring", do_io_uring},
};

int main(int argc, char **argv)
{
	for (int word = 1; word < argc; word++) {
		const char *text = strchr(argv[word], ':');
		const size_t length = text ? (size_t)(text - argv[word]) : strlen(argv[word]);
		for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
			if (strncmp(calls[i].name, argv[word], length) || calls[i].name[length])
				continue;
			note[0] = 0;
			errno = 0;
			const int result = calls[i].run(text ? text + 1 : "");
			printf("%s %s %s\n", argv[word], result < 0 ? strerrorname_np(errno) : "ok", note);
			fflush(stdout);
		}
	}
	return 0;
}
