// Makes known things happen in a guest, so that a test can compare what a monitor sees with what is true.
//
// Each command does one thing, prints one line "ready pid=... key=value ...", and holds on to what it made until it is
// killed. Commands that make events instead of state print a line "done ..." when they are through. Children die with
// the process that made them.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/audit.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <linux/perf_event.h>
#include <linux/rtnetlink.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#define CHECK(expression) check((long)(expression), #expression)

static char **args; // what follows the command's name, ends with NULL
static int arg_count;

static long check(long result, const char *what)
{
	if (result == -1) {
		fprintf(stderr, "workload: %s: %s\n", what, strerror(errno));
		exit(1);
	}
	return result;
}

static const char *arg(int index, const char *otherwise)
{
	return index < arg_count ? args[index] : otherwise;
}

static long number(int index, long otherwise)
{
	return index < arg_count ? strtol(args[index], NULL, 0) : otherwise;
}

__attribute__((format(printf, 1, 2))) static void say_ready(const char *format, ...)
{
	va_list list;
	va_start(list, format);
	printf("ready pid=%d ", getpid());
	vprintf(format, list);
	printf("\n");
	fflush(stdout);
	va_end(list);
}

__attribute__((noreturn)) static int wait_forever(void)
{
	for (;;)
		pause();
}

static pid_t fork_child(void)
{
	pid_t parent = getpid();
	pid_t child = CHECK(fork());
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent && getppid() != 0) // 0: the parent is in another PID namespace
			_exit(1);
	}
	return child;
}

static unsigned long inode(int fd)
{
	struct stat status;
	CHECK(fstat(fd, &status));
	return status.st_ino;
}

static void write_file(const char *path, const char *content)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, content, strlen(content)) < 0) {
		fprintf(stderr, "workload: %s: %s\n", path, strerror(errno));
		exit(1);
	}
	close(fd);
}

static void copy_self(int out)
{
	char buffer[65536];
	ssize_t count;
	int in = CHECK(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
	while ((count = CHECK(read(in, buffer, sizeof buffer))) > 0)
		CHECK(write(out, buffer, count));
	close(in);
}

// --- Sockets

static socklen_t loopback(struct sockaddr_storage *address, long family, int port)
{
	memset(address, 0, sizeof *address);
	if (family == 6) {
		struct sockaddr_in6 *v6 = (void *)address;
		v6->sin6_family = AF_INET6;
		v6->sin6_port = htons(port);
		v6->sin6_addr = in6addr_loopback;
		return sizeof *v6;
	}
	struct sockaddr_in *v4 = (void *)address;
	v4->sin_family = AF_INET;
	v4->sin_port = htons(port);
	v4->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return sizeof *v4;
}

static int local_port(int fd)
{
	struct sockaddr_storage address;
	socklen_t length = sizeof address;
	CHECK(getsockname(fd, (void *)&address, &length));
	return ntohs(address.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&address)->sin6_port
						   : ((struct sockaddr_in *)&address)->sin_port);
}

static int listener(long family, int port)
{
	struct sockaddr_storage address;
	int one = 1;
	int fd = CHECK(socket(family == 6 ? AF_INET6 : AF_INET, SOCK_STREAM, 0));
	CHECK(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one));
	socklen_t length = loopback(&address, family, port);
	CHECK(bind(fd, (void *)&address, length));
	CHECK(listen(fd, 128));
	return fd;
}

static int connected(long family, int port)
{
	struct sockaddr_storage address;
	int fd = CHECK(socket(family == 6 ? AF_INET6 : AF_INET, SOCK_STREAM, 0));
	socklen_t length = loopback(&address, family, port);
	CHECK(connect(fd, (void *)&address, length));
	return fd;
}

static int do_tcp(void)
{
	long family = number(0, 4);
	int listening = listener(family, number(1, 0));
	int port = local_port(listening);
	int client = connected(family, port);
	int server = CHECK(accept(listening, NULL, NULL));
	say_ready("family=%ld port=%d client_port=%d listen_fd=%d client_fd=%d server_fd=%d listen_inode=%lu "
		  "client_inode=%lu server_inode=%lu",
		  family, port, local_port(client), listening, client, server, inode(listening), inode(client),
		  inode(server));
	return wait_forever();
}

static int do_udp(void)
{
	struct sockaddr_storage address;
	long family = number(0, 4);
	int domain = family == 6 ? AF_INET6 : AF_INET;
	int bound = CHECK(socket(domain, SOCK_DGRAM, 0));
	socklen_t length = loopback(&address, family, number(1, 0));
	CHECK(bind(bound, (void *)&address, length));
	int client = CHECK(socket(domain, SOCK_DGRAM, 0));
	length = loopback(&address, family, local_port(bound));
	CHECK(connect(client, (void *)&address, length));
	CHECK(send(client, "unread", 6, 0));
	say_ready("family=%ld port=%d client_port=%d fd=%d client_fd=%d inode=%lu client_inode=%lu", family,
		  local_port(bound), local_port(client), bound, client, inode(bound), inode(client));
	return wait_forever();
}

static int do_raw(void)
{
	long family = number(0, 4);
	long protocol = number(1, family == 6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP);
	int fd = CHECK(socket(family == 6 ? AF_INET6 : AF_INET, SOCK_RAW, protocol));
	say_ready("family=%ld protocol=%ld fd=%d inode=%lu", family, protocol, fd, inode(fd));
	return wait_forever();
}

static int do_packet(void)
{
	const char *device = arg(0, "lo");
	int promiscuous = !strcmp(arg(1, ""), "promisc");
	struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL)};
	int fd = CHECK(socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL)));
	address.sll_ifindex = if_nametoindex(device);
	CHECK(address.sll_ifindex ? 0 : -1);
	CHECK(bind(fd, (void *)&address, sizeof address));
	if (promiscuous) {
		struct packet_mreq request = {.mr_ifindex = address.sll_ifindex, .mr_type = PACKET_MR_PROMISC};
		CHECK(setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &request, sizeof request));
	}
	say_ready("device=%s ifindex=%d promisc=%d fd=%d inode=%lu", device, address.sll_ifindex, promiscuous, fd,
		  inode(fd));
	return wait_forever();
}

static int do_promisc(void)
{
	struct ifreq request = {0};
	const char *device = arg(0, "eth0");
	int fd = CHECK(socket(AF_INET, SOCK_DGRAM, 0));
	snprintf(request.ifr_name, sizeof request.ifr_name, "%s", device);
	CHECK(ioctl(fd, SIOCGIFFLAGS, &request));
	request.ifr_flags |= IFF_PROMISC | IFF_UP;
	CHECK(ioctl(fd, SIOCSIFFLAGS, &request));
	say_ready("device=%s flags=0x%x", device, request.ifr_flags & 0xffff);
	return wait_forever();
}

static int unix_bound(int type, const char *path, socklen_t *length, struct sockaddr_un *address)
{
	int fd = CHECK(socket(AF_UNIX, type, 0));
	memset(address, 0, sizeof *address);
	address->sun_family = AF_UNIX;
	snprintf(address->sun_path, sizeof address->sun_path, "%s", path);
	*length = offsetof(struct sockaddr_un, sun_path) + strlen(path);
	if (path[0] == '@')
		address->sun_path[0] = 0;
	else
		unlink(path);
	CHECK(bind(fd, (void *)address, *length));
	return fd;
}

static int do_unix(void)
{
	struct sockaddr_un address;
	socklen_t length;
	char path[100];
	const char *base = arg(0, "/run/lab/workload");
	int pair[2];

	snprintf(path, sizeof path, "%s.stream", base);
	int listening = unix_bound(SOCK_STREAM, path, &length, &address);
	CHECK(listen(listening, 8));
	int client = CHECK(socket(AF_UNIX, SOCK_STREAM, 0));
	CHECK(connect(client, (void *)&address, length));
	int server = CHECK(accept(listening, NULL, NULL));
	snprintf(path, sizeof path, "%s.dgram", base);
	int datagram = unix_bound(SOCK_DGRAM, path, &length, &address);
	snprintf(path, sizeof path, "@%s", base);
	int abstract = unix_bound(SOCK_SEQPACKET, path, &length, &address);
	CHECK(listen(abstract, 8));
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	say_ready("stream=%s.stream dgram=%s.dgram abstract=@%s listen_inode=%lu client_inode=%lu server_inode=%lu "
		  "dgram_inode=%lu abstract_inode=%lu pair_inodes=%lu,%lu",
		  base, base, base, inode(listening), inode(client), inode(server), inode(datagram), inode(abstract),
		  inode(pair[0]), inode(pair[1]));
	return wait_forever();
}

static int do_netlink(void)
{
	struct sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = RTMGRP_LINK};
	socklen_t length = sizeof address;
	int fd = CHECK(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
	CHECK(bind(fd, (void *)&address, sizeof address));
	CHECK(getsockname(fd, (void *)&address, &length));
	say_ready("protocol=%d portid=%u groups=0x%x fd=%d inode=%lu", NETLINK_ROUTE, address.nl_pid, address.nl_groups,
		  fd, inode(fd));
	return wait_forever();
}

// A shell whose input and output are a network connection, as web shells and reverse shells have.
static int do_remote_shell(void)
{
	int listening = listener(4, number(0, 0));
	int port = local_port(listening);
	pid_t child = fork_child();
	if (child == 0) {
		int fd = connected(4, port);
		for (int to = 0; to < 3; to++)
			CHECK(dup2(fd, to));
		CHECK(execl("/bin/sh", "sh", (char *)NULL));
	}
	int server = CHECK(accept(listening, NULL, NULL));
	say_ready("child=%d port=%d fd=%d inode=%lu", child, port, server, inode(server));
	return wait_forever();
}

// --- Files and memory

static int do_deleted(void)
{
	const char *path = arg(0, "/tmp/workload.deleted");
	int fd = CHECK(open(path, O_RDWR | O_CREAT | O_TRUNC, 0600));
	CHECK(write(fd, "deleted\n", 8));
	CHECK(unlink(path));
	say_ready("path=%s fd=%d inode=%lu", path, fd, inode(fd));
	return wait_forever();
}

static int do_memfd(void)
{
	const char *name = arg(0, "workload");
	int fd = CHECK(memfd_create(name, 0));
	CHECK(write(fd, "memfd\n", 6));
	say_ready("name=%s fd=%d inode=%lu", name, fd, inode(fd));
	return wait_forever();
}

static int do_memfd_exec(void)
{
	char *const line[] = {"workload", "sleep", NULL};
	int fd = CHECK(memfd_create(arg(0, "workload"), MFD_CLOEXEC));
	copy_self(fd);
	CHECK(fexecve(fd, line, environ));
	return 1;
}

static int do_deleted_exec(void)
{
	const char *path = arg(0, "/tmp/workload.exec");
	char *const line[] = {(char *)path, "unlink_and_sleep", (char *)path, NULL};
	int fd = CHECK(open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755));
	copy_self(fd);
	close(fd);
	CHECK(execv(path, line));
	return 1;
}

static int do_unlink_and_sleep(void)
{
	CHECK(unlink(arg(0, "")));
	say_ready("path=%s", arg(0, ""));
	return wait_forever();
}

static int do_fds(void)
{
	sigset_t set;
	int ends[2];
	const char *path = "/tmp/workload.fds";
	int file = CHECK(open(path, O_RDWR | O_CREAT | O_TRUNC | O_APPEND, 0644));
	CHECK(write(file, "0123456789", 10));
	CHECK(lseek(file, 7, SEEK_SET));
	CHECK(flock(file, LOCK_EX));
	int folder = CHECK(open("/tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	int null = CHECK(open("/dev/null", O_WRONLY));
	CHECK(pipe(ends));
	int event = CHECK(eventfd(5, 0));
	int poller = CHECK(epoll_create1(0));
	struct epoll_event wanted = {.events = EPOLLIN, .data.fd = event};
	CHECK(epoll_ctl(poller, EPOLL_CTL_ADD, event, &wanted));
	int timer = CHECK(timerfd_create(CLOCK_MONOTONIC, 0));
	int watch = CHECK(inotify_init1(0));
	CHECK(inotify_add_watch(watch, "/tmp", IN_CREATE));
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	int signals = CHECK(signalfd(-1, &set, 0));
	int process = CHECK(syscall(SYS_pidfd_open, getpid(), 0));
	say_ready("path=%s file=%d offset=7 folder=%d null=%d pipe=%d,%d eventfd=%d epoll=%d timerfd=%d inotify=%d "
		  "signalfd=%d pidfd=%d",
		  path, file, folder, null, ends[0], ends[1], event, poller, timer, watch, signals, process);
	return wait_forever();
}

static void *map(size_t length, int protection, int flags, int fd)
{
	void *address = mmap(NULL, length, protection, flags, fd, 0);
	CHECK(address == MAP_FAILED ? -1 : 0);
	return address;
}

static int do_maps(void)
{
	const size_t page = 4096, size = 1 << 20;
	int file = CHECK(open("/bin/busybox", O_RDONLY));
	char *mapped = map(16 * page, PROT_READ, MAP_PRIVATE, file);
	char *anonymous = map(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	memset(anonymous, 'A', size);
	char *code = map(16 * page, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	memset(code, 0x90, 16 * page);
	strcpy(code + 256, "LARARIUM-LAB-MARK");
	int memory = CHECK(memfd_create("shared", 0));
	CHECK(ftruncate(memory, size));
	char *shared = map(size, PROT_READ | PROT_WRITE, MAP_SHARED, memory);
	memset(shared, 'S', size);
	char *guard = map(16 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	char *untouched = map(64 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	int pages = open("/proc/sys/vm/nr_hugepages", O_WRONLY | O_CLOEXEC);
	if (pages >= 0 && write(pages, "4\n", 2) == 2)
		close(pages);
	void *huge = mmap(NULL, 2 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (huge != MAP_FAILED)
		memset(huge, 'H', 2 * size);
	char *big = map(8 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	madvise(big, 8 * size, MADV_HUGEPAGE);
	memset(big, 'T', 8 * size);
	say_ready("file=%p anon=%p rwx=%p shared=%p none=%p untouched=%p transparent=%p huge=%p", (void *)mapped,
		  (void *)anonymous, (void *)code, (void *)shared, (void *)guard, (void *)untouched, (void *)big,
		  huge == MAP_FAILED ? NULL : huge);
	return wait_forever();
}

// Moves its text to memory that is of no file, with the same content, as programs do that want huge pages for it.
static int do_remap_text(void)
{
	extern char __executable_start, etext;
	char *begin = (char *)((uintptr_t)&__executable_start & ~4095ul);
	size_t size = ((uintptr_t)&etext - (uintptr_t)begin + 4095) & ~4095ul;
	char *copy = map(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	memcpy(copy, begin, size);
	CHECK(mprotect(copy, size, PROT_READ | PROT_EXEC));
	CHECK(mremap(copy, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, begin) == MAP_FAILED ? -1 : 0);
	say_ready("begin=%p size=%zu", (void *)begin, size);
	return wait_forever();
}

// --- Processes

static int do_sleep(void)
{
	say_ready("comm=workload");
	return wait_forever();
}

static int do_true(void)
{
	return 0;
}

static int do_arguments(void)
{
	static char text[5001], variable[5006];
	memset(text, 'x', 5000);
	snprintf(variable, sizeof variable, "LONG=%s", text);
	char *const line[] = {"/bin/workload", "sleep", "two words", "line\nbreak", "byte\xff", "", "quote'\"\\", text, NULL};
	char *const environment[] = {"LAB=1", "SPACE=a b", "LINE=a\nb", "BYTE=\xfe", "EMPTY=", variable, NULL};
	CHECK(execve("/proc/self/exe", line, environment));
	return 1;
}

// Takes another name, and another command line too, as programs do that want to pass for a kernel thread.
static int do_disguise(void)
{
	const char *name = arg(0, "[kworker/0:3]");
	char copy[256];
	snprintf(copy, sizeof copy, "%s", name);
	char *end = args[-2] + strlen(args[-2]);
	for (char **word = args - 1; *word; word++)
		end = *word + strlen(*word);
	memset(args[-2], 0, end - args[-2]);
	memcpy(args[-2], copy, strnlen(copy, end - args[-2] - 1));
	char comm[16];
	snprintf(comm, sizeof comm, "%.*s", (int)strcspn(copy + (copy[0] == '['), "]"), copy + (copy[0] == '['));
	CHECK(prctl(PR_SET_NAME, comm));
	say_ready("comm=%s", comm);
	return wait_forever();
}

static void *thread_main(void *name)
{
	prctl(PR_SET_NAME, name);
	for (;;)
		pause();
	return NULL;
}

static int do_threads(void)
{
	long count = number(0, 4);
	const char *prefix = arg(1, "thread");
	pthread_attr_t attributes;
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 65536);
	for (long index = 0; index < count; index++) {
		pthread_t thread;
		char *name = malloc(16);
		snprintf(name, 16, "%.10s-%ld", prefix, index);
		int code = pthread_create(&thread, &attributes, thread_main, name);
		if (code) {
			fprintf(stderr, "workload: pthread_create: %s\n", strerror(code));
			return 1;
		}
	}
	usleep(200000);
	say_ready("threads=%ld prefix=%s", count, prefix);
	return wait_forever();
}

static int do_spawn(void)
{
	long count = number(0, 100), index;
	pid_t first = 0, last = 0;
	for (index = 0; index < count; index++) {
		last = fork_child();
		if (last == 0) {
			char name[16];
			snprintf(name, sizeof name, "%.10s-%ld", arg(1, "spawn"), index);
			prctl(PR_SET_NAME, name);
			wait_forever();
		}
		if (!first)
			first = last;
	}
	say_ready("count=%ld first=%d last=%d", count, first, last);
	return wait_forever();
}

static int do_zombie(void)
{
	long count = number(0, 1);
	pid_t child = 0;
	siginfo_t info;
	for (long index = 0; index < count; index++) {
		child = CHECK(fork());
		if (child == 0)
			_exit(7);
		CHECK(waitid(P_PID, child, &info, WEXITED | WNOWAIT)); // it has ended, and nobody took note
	}
	say_ready("count=%ld child=%d", count, child);
	return wait_forever();
}

static int do_ptrace(void)
{
	pid_t child = fork_child();
	if (child == 0) {
		CHECK(ptrace(PTRACE_TRACEME, 0, NULL, NULL));
		raise(SIGSTOP);
		wait_forever();
	}
	CHECK(waitpid(child, NULL, 0));
	say_ready("child=%d", child);
	return wait_forever();
}

static int do_setuid(void)
{
	long uid = number(0, 1000);
	gid_t groups[] = {uid, 33};
	CHECK(setgroups(2, groups));
	CHECK(setresgid(uid, uid, uid));
	CHECK(setresuid(uid, uid, uid));
	say_ready("uid=%ld groups=%ld,33", uid, uid);
	return wait_forever();
}

static int do_capabilities(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2] = {{0}, {0}};
	unsigned kept = 1u << CAP_NET_RAW;
	for (int number = 0; number < 64; number++)
		if (number != CAP_NET_RAW)
			prctl(PR_CAPBSET_DROP, number, 0, 0, 0);
	data[0].effective = data[0].permitted = kept;
	CHECK(syscall(SYS_capset, &header, data));
	CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	struct sock_filter allow[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
	struct sock_fprog program = {.len = 1, .filter = allow};
	CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
	say_ready("effective=0x%x no_new_privs=1 seccomp=2", kept);
	return wait_forever();
}

// A process as a container engine would start it: its own namespaces, user 0 that is 100000 outside, and a control
// group that bears the container's id.
static int do_container(void)
{
	const char *id = arg(0, "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef");
	char path[PATH_MAX], text[64], answer;
	int forth[2], back[2], inside[2];

	snprintf(path, sizeof path, "/sys/fs/cgroup/system.slice");
	mkdir(path, 0755);
	snprintf(path, sizeof path, "/sys/fs/cgroup/system.slice/docker-%s.scope", id);
	if (mkdir(path, 0755) && errno != EEXIST)
		CHECK(-1);
	CHECK(pipe(forth));
	CHECK(pipe(back));
	CHECK(pipe(inside));
	pid_t middle = fork_child();
	if (middle == 0) {
		pid_t inner;
		char procs[PATH_MAX + 16];
		snprintf(procs, sizeof procs, "%s/cgroup.procs", path);
		write_file(procs, "0");
		CHECK(unshare(CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC |
			      CLONE_NEWCGROUP));
		CHECK(write(back[1], "u", 1));
		CHECK(read(forth[0], &answer, 1));
		CHECK(setresgid(0, 0, 0));
		CHECK(setresuid(0, 0, 0));
		prctl(PR_SET_PDEATHSIG, SIGKILL); // a change of user drops it
		inner = fork_child();
		if (inner == 0) {
			CHECK(sethostname(id, 12));
			mount("proc", "/proc", "proc", 0, NULL);
			prctl(PR_SET_NAME, "container");
			CHECK(write(inside[1], "r", 1));
			wait_forever();
		}
		CHECK(read(inside[0], &answer, 1));
		CHECK(write(back[1], &inner, sizeof inner));
		wait_forever();
	}
	pid_t inner = 0;
	CHECK(read(back[0], &answer, 1));
	snprintf(path, sizeof path, "/proc/%d/uid_map", middle);
	snprintf(text, sizeof text, "0 100000 65536\n");
	write_file(path, text);
	snprintf(path, sizeof path, "/proc/%d/gid_map", middle);
	write_file(path, text);
	CHECK(write(forth[1], "g", 1));
	if (CHECK(read(back[0], &inner, sizeof inner)) != sizeof inner)
		return 1;
	say_ready("child=%d middle=%d id=%s hostname=%.12s uid=100000", inner, middle, id, id);
	return wait_forever();
}

// --- Lawful ways to be somebody else

// Goes on as the command that follows UID, as that user: its program is started anew.
static void run_as(uid_t uid, const char *path, const char *command)
{
	char *const line[] = {(char *)path, (char *)command, NULL};
	CHECK(setgroups(0, NULL));
	CHECK(setresgid(uid, uid, uid));
	CHECK(setresuid(uid, uid, uid));
	CHECK(execv(path, line));
}

static int do_as(void)
{
	run_as(number(0, 1000), "/bin/workload", arg(1, "sleep"));
	return 1;
}

// As a user who makes a user namespace, and starts a program in it.
static int do_own_namespace(void)
{
	uid_t uid = number(0, 1000);
	char text[64];
	char *const line[] = {"workload", "sleep", NULL};
	CHECK(setgroups(0, NULL));
	CHECK(setresgid(uid, uid, uid));
	CHECK(setresuid(uid, uid, uid));
	prctl(PR_SET_DUMPABLE, 1, 0, 0, 0); // or its files in /proc would not be its own
	CHECK(unshare(CLONE_NEWUSER));
	write_file("/proc/self/setgroups", "deny");
	snprintf(text, sizeof text, "0 %u 1\n", uid);
	write_file("/proc/self/uid_map", text);
	write_file("/proc/self/gid_map", text);
	CHECK(execv("/bin/workload", line));
	return 1;
}

static void set_capabilities(uint32_t permitted, uint32_t inheritable)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2] = {{permitted, permitted, inheritable}, {0}};
	CHECK(syscall(SYS_capset, &header, data));
}

static void become_with(uid_t uid, uint32_t permitted, uint32_t inheritable)
{
	CHECK(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0));
	CHECK(setresuid(uid, uid, uid));
	set_capabilities(permitted, inheritable);
	CHECK(prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0));
}

// What sudo does, once it runs from its setuid file.
static int do_become_root(void)
{
	CHECK(setresgid(0, 0, 0));
	CHECK(setresuid(0, 0, 0));
	if (fork_child() == 0) {
		execl("/bin/workload", "workload", "sleep", (char *)NULL);
		_exit(127);
	}
	return wait_forever();
}

static void *thread_as_user(void *unused)
{
	CHECK(syscall(SYS_setresuid, 1000, 1000, 1000)); // of this thread alone
	wait_forever();
	return unused;
}

// Copies this program to PATH, with MODE and, as `setcap cap_net_raw+ep` does, a capability.
static int special_copy(const char *path, mode_t mode, int with_capability)
{
	const struct vfs_cap_data data = {.magic_etc = VFS_CAP_REVISION_2 | VFS_CAP_FLAGS_EFFECTIVE,
					  .data = {{.permitted = 1u << CAP_NET_RAW}}};
	int fd = CHECK(open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755));
	int result = 0;
	copy_self(fd);
	CHECK(fchmod(fd, mode));
	if (with_capability)
		result = fsetxattr(fd, "security.capability", &data, XATTR_CAPS_SZ_2, 0);
	close(fd);
	return result;
}

// A process for each lawful way to change what one may do. Those that start a privileged program outlive this one, but
// not its process group.
static int do_credentials(void)
{
	static const char *const setuid_copy = "/tmp/workload.setuid", *const capable_copy = "/dev/shm/workload.capable";
	const int churn = !strcmp(arg(0, ""), "storm");
	int has_capable;
	pthread_t thread;
	special_copy(setuid_copy, 04755, 0);
	has_capable = !special_copy(capable_copy, 0755, 1);
	if (fork_child() == 0) { // a daemon that acts as a user now and then
		for (;;) {
			CHECK(seteuid(1000));
			usleep(1000);
			CHECK(seteuid(0));
		}
	}
	if (fork_child() == 0)
		run_as(1000, setuid_copy, "sleep");
	if (fork_child() == 0)
		run_as(1000, setuid_copy, "become_root");
	if (has_capable && fork_child() == 0)
		run_as(1000, capable_copy, "sleep");
	if (fork_child() == 0) { // a daemon that binds to a low port as a user
		become_with(1000, 1u << CAP_NET_BIND_SERVICE, 0);
		wait_forever();
	}
	if (fork_child() == 0) { // ambient capabilities, as service managers give
		become_with(1000, 1u << CAP_NET_RAW, 1u << CAP_NET_RAW);
		CHECK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_RAW, 0, 0));
		execl("/proc/self/exe", "workload", "sleep", (char *)NULL);
		_exit(127);
	}
	pid_t inside = fork_child();
	if (inside == 0) {
		freopen("/dev/null", "w", stdout);
		do_own_namespace();
	}
	usleep(200000);
	if (fork_child() == 0) { // as nsenter does
		char path[64];
		snprintf(path, sizeof path, "/proc/%d/ns/user", inside);
		int fd = CHECK(open(path, O_RDONLY | O_CLOEXEC));
		CHECK(setns(fd, CLONE_NEWUSER));
		wait_forever();
	}
	CHECK(pthread_create(&thread, NULL, thread_as_user, NULL) ? -1 : 0);
	say_ready("capable=%d", has_capable);
	while (churn) { // programs that gain, and programs in new namespaces, again and again
		if (fork_child() == 0)
			run_as(1000, setuid_copy, "true");
		if (fork_child() == 0)
			run_as(1000, has_capable ? capable_copy : setuid_copy, "true");
		if (fork_child() == 0) {
			CHECK(setresuid(1000, 1000, 1000));
			CHECK(unshare(CLONE_NEWUSER));
			execl("/proc/self/exe", "workload", "true", (char *)NULL);
			_exit(127);
		}
		for (int count = 0; count < 3; count++)
			wait(NULL);
	}
	return wait_forever();
}

static int do_spin(void)
{
	long count = number(0, 1);
	for (long index = 1; index < count; index++)
		if (fork_child() == 0)
			for (;;)
				__asm__ volatile("pause");
	say_ready("processes=%ld", count);
	for (;;)
		__asm__ volatile("pause");
	return 0;
}

// --- The kernel's own audit

static int audit_send(int socket, __u16 type, const void *data, size_t size)
{
	struct {
		struct nlmsghdr head;
		char data[NLMSG_ALIGN(sizeof(struct audit_rule_data))];
	} message = {.head = {.nlmsg_len = NLMSG_LENGTH(size), .nlmsg_type = type, .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK}};
	memcpy(message.data, data, size);
	return send(socket, &message, message.head.nlmsg_len, 0) < 0 ? -1 : 0;
}

static volatile sig_atomic_t audit_over;
static void end_audit(int signal)
{
	(void)signal;
	audit_over = 1;
}

// What `auditctl -a always,exit -S execve -S openat` and auditd do, but for writing it to a disk.
static int do_audit(void)
{
	struct audit_rule_data rule = {.flags = AUDIT_FILTER_EXIT, .action = AUDIT_ALWAYS};
	struct audit_status status = {.mask = AUDIT_STATUS_ENABLED | AUDIT_STATUS_PID | AUDIT_STATUS_BACKLOG_LIMIT,
	                              .enabled = 1, .pid = getpid(), .backlog_limit = 8192};
	int socket_ = CHECK(socket(AF_NETLINK, SOCK_RAW, NETLINK_AUDIT));
	struct sigaction action = {.sa_handler = end_audit};
	char message[9000];
	long count = 0;
	sigaction(SIGTERM, &action, NULL);
	rule.mask[AUDIT_WORD(SYS_execve)] |= AUDIT_BIT(SYS_execve);
	rule.mask[AUDIT_WORD(SYS_openat)] |= AUDIT_BIT(SYS_openat);
	CHECK(audit_send(socket_, AUDIT_SET, &status, sizeof(status)));
	CHECK(audit_send(socket_, AUDIT_ADD_RULE, &rule, sizeof(rule)));
	say_ready("audit=1");
	while (!audit_over)
		if (recv(socket_, message, sizeof(message), 0) > 0)
			count++;
	status = (struct audit_status){.mask = AUDIT_STATUS_ENABLED};
	audit_send(socket_, AUDIT_DEL_RULE, &rule, sizeof(rule));
	audit_send(socket_, AUDIT_SET, &status, sizeof(status));
	printf("done messages=%ld\n", count);
	return 0;
}

// --- Events

// Starts COUNT programs, one after the other, each with its number on its command line.
static int do_exec(void)
{
	long count = number(0, 100);
	useconds_t pause_between = number(1, 0);
	say_ready("count=%ld", count);
	for (long index = 0; index < count; index++) {
		char text[32];
		snprintf(text, sizeof text, "event-%ld", index);
		pid_t child = CHECK(vfork());
		if (child == 0) {
			execl("/bin/workload", "workload", "true", text, (char *)NULL);
			_exit(127);
		}
		CHECK(waitpid(child, NULL, 0));
		usleep(pause_between);
	}
	printf("done count=%ld\n", count);
	return 0;
}

// Makes and ends processes as fast as it can, or COUNT of them.
static int do_storm(void)
{
	long count = number(0, LONG_MAX), made = 0;
	say_ready("count=%ld", count);
	while (made < count) {
		pid_t child = fork();
		if (child == 0)
			_exit(0);
		if (child > 0) {
			made++;
			waitpid(child, NULL, 0);
		}
	}
	printf("done count=%ld\n", made);
	return 0;
}

static int do_connect(void)
{
	long count = number(0, 100);
	int listening = listener(4, number(1, 0));
	int port = local_port(listening);
	say_ready("count=%ld port=%d", count, port);
	for (long index = 0; index < count; index++) {
		int client = connected(4, port);
		int server = CHECK(accept(listening, NULL, NULL));
		close(client);
		close(server);
	}
	printf("done count=%ld\n", count);
	return 0;
}

// --- BPF

static long bpf(enum bpf_cmd command, union bpf_attr *attributes)
{
	return syscall(SYS_bpf, command, attributes, sizeof *attributes);
}

static uint64_t pointer(const void *address)
{
	return (uintptr_t)address;
}

static int bpf_map(enum bpf_map_type type, const char *name, unsigned entries)
{
	union bpf_attr attributes = {.map_type = type, .key_size = 4, .value_size = 8, .max_entries = entries};
	strncpy(attributes.map_name, name, BPF_OBJ_NAME_LEN - 1);
	int fd = CHECK(bpf(BPF_MAP_CREATE, &attributes));
	uint32_t key = 3;
	uint64_t value = 0x4c41524152495541; // "LARARIUA" to whoever looks at the map
	union bpf_attr update = {.map_fd = fd, .key = pointer(&key), .value = pointer(&value)};
	CHECK(bpf(BPF_MAP_UPDATE_ELEM, &update));
	return fd;
}

// A program that refers to MAP, if that is one, and returns RESULT.
static int bpf_program(enum bpf_prog_type type, const char *name, int map, int result, int attach_type)
{
	static char log[65536];
	struct bpf_insn code[] = {
		{.code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = 2, .src_reg = BPF_PSEUDO_MAP_FD, .imm = map},
		{0},
		{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = result},
		{.code = BPF_JMP | BPF_EXIT},
	};
	int skip = map < 0 ? 2 : 0;
	union bpf_attr attributes = {
		.prog_type = type,
		.insns = pointer(code + skip),
		.insn_cnt = 4 - skip,
		.license = pointer("GPL"),
		.log_buf = pointer(log),
		.log_size = sizeof log,
		.log_level = 1,
		.expected_attach_type = attach_type,
	};
	strncpy(attributes.prog_name, name, BPF_OBJ_NAME_LEN - 1);
	int fd = bpf(BPF_PROG_LOAD, &attributes);
	if (fd < 0)
		fprintf(stderr, "workload: %s: %s\n%s", name, strerror(errno), log);
	return fd;
}

static long bpf_id(int fd, int is_map)
{
	struct bpf_prog_info program = {0};
	struct bpf_map_info map = {0};
	union bpf_attr attributes = {.info.bpf_fd = fd};
	attributes.info.info = is_map ? pointer(&map) : pointer(&program);
	attributes.info.info_len = is_map ? sizeof map : sizeof program;
	CHECK(bpf(BPF_OBJ_GET_INFO_BY_FD, &attributes));
	return is_map ? map.id : program.id;
}

static long read_number(const char *path)
{
	char text[32] = "";
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || read(fd, text, sizeof text - 1) <= 0)
		return -1;
	close(fd);
	return strtol(text, NULL, 10);
}

static int attach_event(int program, struct perf_event_attr *event)
{
	event->size = sizeof *event;
	int fd = syscall(SYS_perf_event_open, event, -1, 0, -1, PERF_FLAG_FD_CLOEXEC);
	if (fd < 0 || ioctl(fd, PERF_EVENT_IOC_SET_BPF, program) || ioctl(fd, PERF_EVENT_IOC_ENABLE, 0))
		return -1;
	return fd;
}

static int attach_link(int program, int target, int attach_type)
{
	union bpf_attr attributes = {.link_create = {.prog_fd = program, .target_fd = target, .attach_type = attach_type}};
	return bpf(BPF_LINK_CREATE, &attributes);
}

static int pin(int fd, const char *path)
{
	union bpf_attr attributes = {.pathname = pointer(path), .bpf_fd = fd};
	unlink(path);
	return bpf(BPF_OBJ_PIN, &attributes);
}

// Prints the program's id, or 0 and why it is not there.
static void say_program(const char *name, int program, int attached)
{
	if (program < 0 || attached < 0)
		printf("%s=0 %s_error=%d ", name, name, errno);
	else
		printf("%s=%ld ", name, bpf_id(program, 0));
}

static int do_bpf(void)
{
	const char *function = arg(0, "do_sys_openat2");
	int hash = bpf_map(BPF_MAP_TYPE_HASH, "lab_hash", 16);
	int array = bpf_map(BPF_MAP_TYPE_ARRAY, "lab_array", 8);
	printf("ready pid=%d hash_map=%ld array_map=%ld ", getpid(), bpf_id(hash, 1), bpf_id(array, 1));

	int program = bpf_program(BPF_PROG_TYPE_SOCKET_FILTER, "lab_filter", hash, -1, 0);
	int fd = CHECK(socket(AF_INET, SOCK_DGRAM, 0));
	say_program("filter", program, setsockopt(fd, SOL_SOCKET, SO_ATTACH_BPF, &program, sizeof program));

	program = bpf_program(BPF_PROG_TYPE_KPROBE, "lab_kprobe", array, 0, 0);
	struct perf_event_attr probe = {.type = read_number("/sys/bus/event_source/devices/kprobe/type")};
	probe.config1 = pointer(function);
	say_program("kprobe", program, attach_event(program, &probe));

	program = bpf_program(BPF_PROG_TYPE_TRACEPOINT, "lab_tracepoint", array, 0, 0);
	struct perf_event_attr point = {.type = PERF_TYPE_TRACEPOINT, .sample_period = 1};
	point.config = read_number("/sys/kernel/tracing/events/sched/sched_process_exec/id");
	say_program("tracepoint", program, attach_event(program, &point));

	program = bpf_program(BPF_PROG_TYPE_RAW_TRACEPOINT, "lab_raw", hash, 0, 0);
	union bpf_attr raw = {.raw_tracepoint = {.name = pointer("sched_process_exit"), .prog_fd = program}};
	say_program("raw_tracepoint", program, bpf(BPF_RAW_TRACEPOINT_OPEN, &raw));

	program = bpf_program(BPF_PROG_TYPE_CGROUP_SKB, "lab_egress", -1, 1, BPF_CGROUP_INET_EGRESS);
	int group = open("/sys/fs/cgroup", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	say_program("cgroup_skb", program, attach_link(program, group, BPF_CGROUP_INET_EGRESS));

	program = bpf_program(BPF_PROG_TYPE_XDP, "lab_xdp", -1, XDP_PASS, BPF_XDP);
	say_program("xdp", program, attach_link(program, if_nametoindex("lo"), BPF_XDP));

	printf("pinned_map=%s ", pin(hash, "/sys/fs/bpf/lab_hash") ? "" : "/sys/fs/bpf/lab_hash");
	program = bpf_program(BPF_PROG_TYPE_SOCKET_FILTER, "lab_pinned", -1, 0, 0);
	printf("pinned_program=%s ", pin(program, "/sys/fs/bpf/lab_pinned") ? "" : "/sys/fs/bpf/lab_pinned");
	say_program("pinned", program, 0);
	close(program); // only the pin holds it now
	printf("function=%s\n", function);
	fflush(stdout);
	return wait_forever();
}

// --- Another kernel

// Goes on with another kernel, and no firmware between the two.
static int do_kexec(void)
{
	if (arg_count != 2)
		return 2;
	char line[4096] = "";
	int kernel = CHECK(open(args[0], O_RDONLY | O_CLOEXEC)), ramdisk = CHECK(open(args[1], O_RDONLY | O_CLOEXEC));
	int file = CHECK(open("/proc/cmdline", O_RDONLY | O_CLOEXEC));
	ssize_t length = CHECK(read(file, line, sizeof line - 1));
	if (length > 0 && line[length - 1] == '\n')
		line[--length] = 0;
	CHECK(syscall(SYS_kexec_file_load, kernel, ramdisk, length + 1, line, 0UL));
	say_ready("kernel=%s", args[0]);
	sleep(1); // so that the line is read
	CHECK(reboot(0x45584543)); // LINUX_REBOOT_CMD_KEXEC
	return 1;
}

// --- Choice

static const struct {
	const char *name;
	int (*run)(void);
	const char *help;
} commands[] = {
	{"tcp", do_tcp, "[4|6] [PORT]: a listener and a connection to it"},
	{"udp", do_udp, "[4|6] [PORT]: a bound socket, and one connected to it that sent it a datagram"},
	{"raw", do_raw, "[4|6] [PROTOCOL]: a raw socket"},
	{"packet", do_packet, "[DEVICE] [promisc]: a packet socket"},
	{"promisc", do_promisc, "[DEVICE]: sets the device's promiscuous flag"},
	{"unix", do_unix, "[PATH]: stream pair, datagram, abstract and unnamed UNIX sockets"},
	{"netlink", do_netlink, ": a netlink socket"},
	{"remote_shell", do_remote_shell, "[PORT]: a shell on a network connection"},
	{"deleted", do_deleted, "[PATH]: an open file that is deleted"},
	{"memfd", do_memfd, "[NAME]: an open memfd"},
	{"memfd_exec", do_memfd_exec, "[NAME]: runs from a memfd"},
	{"deleted_exec", do_deleted_exec, "[PATH]: runs from a file that is deleted"},
	{"unlink_and_sleep", do_unlink_and_sleep, "PATH: deletes a file"},
	{"fds", do_fds, ": one descriptor of each kind"},
	{"maps", do_maps, ": one mapping of each kind"},
	{"remap_text", do_remap_text, ": its own text in anonymous memory"},
	{"sleep", do_sleep, "[WORDS]: does nothing"},
	{"true", do_true, "[WORDS]: ends at once"},
	{"arguments", do_arguments, ": odd and long arguments and environment"},
	{"disguise", do_disguise, "[NAME]: takes another name and command line"},
	{"threads", do_threads, "[COUNT] [PREFIX]: named threads"},
	{"spawn", do_spawn, "[COUNT] [PREFIX]: named sleeping processes"},
	{"zombie", do_zombie, "[COUNT]: children that ended"},
	{"ptrace", do_ptrace, ": a child that is traced"},
	{"setuid", do_setuid, "[UID]: another user and groups"},
	{"capabilities", do_capabilities, ": only CAP_NET_RAW, no_new_privs, a seccomp filter"},
	{"container", do_container, "[ID]: a child in namespaces and a container's control group"},
	{"as", do_as, "[UID] [COMMAND]: another user, then a program started by it"},
	{"own_namespace", do_own_namespace, "[UID]: a user's own user namespace, and a program started in it"},
	{"become_root", do_become_root, ": from a setuid file: user 0, and a program started by it"},
	{"credentials", do_credentials, "[storm]: each lawful way to change what one may do"},
	{"spin", do_spin, "[COUNT]: uses up CPU time"},
	{"audit", do_audit, ": has the kernel audit execve and openat, and reads what it says"},
	{"exec", do_exec, "[COUNT] [MICROSECONDS]: starts numbered programs"},
	{"storm", do_storm, "[COUNT]: makes processes as fast as it can"},
	{"connect", do_connect, "[COUNT] [PORT]: makes connections"},
	{"bpf", do_bpf, "[FUNCTION]: BPF maps and programs, attached and pinned"},
	{"kexec", do_kexec, "KERNEL INITRD: boots another kernel with the command line of this one"},
};

int main(int argc, char **argv)
{
	args = argv + 2;
	arg_count = argc > 2 ? argc - 2 : 0;
	for (size_t index = 0; argc > 1 && index < sizeof commands / sizeof *commands; index++)
		if (!strcmp(argv[1], commands[index].name))
			return commands[index].run();
	for (size_t index = 0; index < sizeof commands / sizeof *commands; index++)
		fprintf(stderr, "workload %s %s\n", commands[index].name, commands[index].help);
	return 2;
}
