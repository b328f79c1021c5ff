// Attack simulators for test guests, in user space: each command loads one BPF program as rootkits use them, prints
// "ready pid=... id=..." with the program's number, and does nothing else until it is killed. It exists only to test
// detection, and is started by tests only, in guests that they booted themselves. The programs change nothing: what is
// written goes to address 0, and every decision is the kernel's own. Exit code 77: this kernel does not have it.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/btf.h>
#include <linux/if_link.h>
#include <linux/netlink.h>
#include <linux/perf_event.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define UNSUPPORTED 77
#define MOVE(register, value) {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = register, .imm = value}
#define CALL(helper) {.code = BPF_JMP | BPF_CALL, .imm = helper}
#define EXIT {.code = BPF_JMP | BPF_EXIT}

static void check(int failed, const char *what)
{
	if (failed) {
		fprintf(stderr, "bpf_program: %s: %s\n", what, strerror(errno));
		exit(1);
	}
}

static long bpf(enum bpf_cmd command, union bpf_attr *attributes)
{
	return syscall(SYS_bpf, command, attributes, sizeof *attributes);
}

static int load(enum bpf_prog_type type, const struct bpf_insn *code, size_t count, int attach_type, int function)
{
	static char log[1 << 16];
	union bpf_attr attributes = {
		.prog_type = type,
		.insns = (uintptr_t)code,
		.insn_cnt = count,
		.license = (uintptr_t) "GPL",
		.log_buf = (uintptr_t)log,
		.log_size = sizeof log,
		.log_level = 1,
		.expected_attach_type = attach_type,
		.attach_btf_id = function,
		.prog_name = "attack",
	};
	int fd = bpf(BPF_PROG_LOAD, &attributes);
	if (fd < 0) {
		fprintf(stderr, "bpf_program: not loaded: %s\n%s", strerror(errno), log);
		exit(UNSUPPORTED);
	}
	return fd;
}

static void ready(int program)
{
	struct bpf_prog_info info = {0};
	union bpf_attr attributes = {.info = {.bpf_fd = program, .info_len = sizeof info, .info = (uintptr_t)&info}};
	check(bpf(BPF_OBJ_GET_INFO_BY_FD, &attributes) < 0, "BPF_OBJ_GET_INFO_BY_FD");
	printf("ready pid=%d id=%u\n", getpid(), info.id);
	fflush(stdout);
}

__attribute__((noreturn)) static int wait_forever(void)
{
	for (;;)
		pause();
}

// The number that the kernel's types give a function.
static int function_id(const char *name)
{
	static const size_t extra[BTF_KIND_MAX + 16] = {
		[BTF_KIND_INT] = 4, [BTF_KIND_ARRAY] = 12, [BTF_KIND_VAR] = 4, [17] = 4, // BTF_KIND_DECL_TAG
	};
	struct stat status;
	int fd = open("/sys/kernel/btf/vmlinux", O_RDONLY | O_CLOEXEC), id = 1;
	check(fd < 0 || fstat(fd, &status), "/sys/kernel/btf/vmlinux");
	char *bytes = malloc(status.st_size);
	for (long done = 0, step; done < status.st_size; done += step)
		check((step = read(fd, bytes + done, status.st_size - done)) <= 0, "read");
	close(fd);
	const struct btf_header *header = (void *)bytes;
	const char *at = bytes + header->hdr_len + header->type_off, *end = at + header->type_len;
	const char *texts = bytes + header->hdr_len + header->str_off;
	for (; at < end; id++) {
		const struct btf_type *type = (const void *)at;
		const unsigned kind = type->info >> 24 & 31, count = type->info & 0xffff;
		if (kind == BTF_KIND_FUNC && !strcmp(texts + type->name_off, name))
			return id;
		at += sizeof *type + extra[kind];
		if (kind == BTF_KIND_STRUCT || kind == BTF_KIND_UNION || kind == BTF_KIND_DATASEC || kind == 19)
			at += 12 * count; // 19: BTF_KIND_ENUM64
		else if (kind == BTF_KIND_ENUM || kind == BTF_KIND_FUNC_PROTO)
			at += 8 * count;
	}
	fprintf(stderr, "bpf_program: the kernel has no %s\n", name);
	exit(UNSUPPORTED);
}

static int open_raw(const char *tracepoint, int program)
{
	union bpf_attr attributes = {.raw_tracepoint = {.name = (uintptr_t)tracepoint, .prog_fd = program}};
	int fd = bpf(BPF_RAW_TRACEPOINT_OPEN, &attributes);
	if (fd < 0) {
		fprintf(stderr, "bpf_program: not attached: %s\n", strerror(errno));
		exit(UNSUPPORTED);
	}
	return fd;
}

static const struct bpf_insn nothing[] = {MOVE(BPF_REG_0, 0), EXIT};

static int plain(void)
{
	int program = load(BPF_PROG_TYPE_RAW_TRACEPOINT, nothing, 2, 0, 0);
	open_raw("sched_process_exit", program);
	ready(program);
	return wait_forever();
}

__attribute__((noreturn)) static void keep_in_flight(int link, int program);

// Whenever a program ends, eight bytes of its memory could now be told to somebody, and no process has this one.
static int read_user_in_flight(void)
{
	static const struct bpf_insn code[] = {
		{.code = BPF_ALU64 | BPF_MOV | BPF_X, .dst_reg = BPF_REG_1, .src_reg = BPF_REG_10},
		{.code = BPF_ALU64 | BPF_ADD | BPF_K, .dst_reg = BPF_REG_1, .imm = -8},
		MOVE(BPF_REG_2, 8),
		MOVE(BPF_REG_3, 4096),
		CALL(BPF_FUNC_probe_read_user),
		MOVE(BPF_REG_0, 0),
		EXIT,
	};
	int program = load(BPF_PROG_TYPE_RAW_TRACEPOINT, code, sizeof code / sizeof *code, 0, 0);
	keep_in_flight(open_raw("sched_process_exit", program), program);
}

// Whenever a program has listed a folder, it could now be told something else.
static int write_user(void)
{
	static const struct bpf_insn code[] = {
		{.code = BPF_ST | BPF_MEM | BPF_DW, .dst_reg = BPF_REG_10, .off = -8},
		MOVE(BPF_REG_1, 0),
		{.code = BPF_ALU64 | BPF_MOV | BPF_X, .dst_reg = BPF_REG_2, .src_reg = BPF_REG_10},
		{.code = BPF_ALU64 | BPF_ADD | BPF_K, .dst_reg = BPF_REG_2, .imm = -8},
		MOVE(BPF_REG_3, 8),
		CALL(BPF_FUNC_probe_write_user),
		MOVE(BPF_REG_0, 0),
		EXIT,
	};
	struct perf_event_attr event = {.type = PERF_TYPE_TRACEPOINT, .size = sizeof event, .sample_period = 1};
	char text[32] = "";
	int file = open("/sys/kernel/tracing/events/syscalls/sys_exit_getdents64/id", O_RDONLY | O_CLOEXEC);
	if (file < 0 || read(file, text, sizeof text - 1) <= 0) {
		fprintf(stderr, "bpf_program: the kernel has no tracepoints of system calls\n");
		return UNSUPPORTED;
	}
	event.config = strtol(text, NULL, 10);
	int program = load(BPF_PROG_TYPE_TRACEPOINT, code, sizeof code / sizeof *code, 0, 0);
	int fd = syscall(SYS_perf_event_open, &event, -1, 0, -1, PERF_FLAG_FD_CLOEXEC);
	check(fd < 0 || ioctl(fd, PERF_EVENT_IOC_SET_BPF, program) || ioctl(fd, PERF_EVENT_IOC_ENABLE, 0), "perf event");
	ready(program);
	return wait_forever();
}

// In place of a function that decides; 0 goes on to the function itself.
static int modify_return(void)
{
	int program =
		load(BPF_PROG_TYPE_TRACING, nothing, 2, BPF_MODIFY_RETURN, function_id("security_settime64"));
	open_raw(NULL, program);
	ready(program);
	return wait_forever();
}

// The link's descriptor waits in a socket's queue, and in no table of descriptors.
__attribute__((noreturn)) static void keep_in_flight(int link, int program)
{
	char control[CMSG_SPACE(sizeof link)] = {0}, byte = 0;
	struct iovec part = {&byte, 1};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	int ends[2];
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof link);
	memcpy(CMSG_DATA(header), &link, sizeof link);
	check(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, ends), "socketpair");
	check(sendmsg(ends[0], &message, 0) != 1, "sendmsg");
	close(link);
	ready(program);
	close(program);
	wait_forever();
}

static int link_in_flight(void)
{
	int program = load(BPF_PROG_TYPE_RAW_TRACEPOINT, nothing, 2, 0, 0);
	keep_in_flight(open_raw("sched_process_exit", program), program);
}

static int lsm_in_flight(void)
{
	int program = load(BPF_PROG_TYPE_LSM, nothing, 2, BPF_LSM_MAC, function_id("bpf_lsm_settime"));
	keep_in_flight(open_raw(NULL, program), program);
}

// -1 takes off what is there.
static void set_xdp(const char *device, int program)
{
	struct {
		struct nlmsghdr header;
		struct ifinfomsg device;
		struct nlattr outer, inner;
		int program;
	} request = {
		.header = {.nlmsg_len = sizeof request, .nlmsg_type = RTM_SETLINK, .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK},
		.device = {.ifi_family = AF_UNSPEC, .ifi_index = if_nametoindex(device)},
		.outer = {2 * sizeof(struct nlattr) + sizeof(int), IFLA_XDP | NLA_F_NESTED},
		.inner = {sizeof(struct nlattr) + sizeof(int), IFLA_XDP_FD},
		.program = program,
	};
	struct {
		struct nlmsghdr header;
		struct nlmsgerr error;
		char rest[256];
	} answer;
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	check(fd < 0 || send(fd, &request, sizeof request, 0) < 0, "netlink");
	check(recv(fd, &answer, sizeof answer, 0) < (long)sizeof(struct nlmsghdr), "netlink");
	errno = -answer.error.error;
	check(answer.error.error != 0, "IFLA_XDP");
}

// Lets every packet pass, and goes on when this process has ended.
static int xdp(void)
{
	static const struct bpf_insn pass[] = {MOVE(BPF_REG_0, XDP_PASS), EXIT};
	int program = load(BPF_PROG_TYPE_XDP, pass, 2, 0, 0);
	set_xdp("dummy0", program);
	ready(program);
	return 0;
}

static int xdp_off(void)
{
	set_xdp("dummy0", -1);
	return 0;
}

int main(int count, char **arguments)
{
	static const struct {
		const char *name;
		int (*run)(void);
	} commands[] = {{"plain", plain},
			{"write_user", write_user},
			{"read_user_in_flight", read_user_in_flight},
			{"modify_return", modify_return},
			{"link_in_flight", link_in_flight},
			{"lsm_in_flight", lsm_in_flight},
			{"xdp", xdp},
			{"xdp_off", xdp_off}};
	for (size_t index = 0; index < sizeof commands / sizeof *commands; index++)
		if (count > 1 && !strcmp(commands[index].name, arguments[1]))
			return commands[index].run();
	fprintf(stderr, "usage: bpf_program plain|write_user|read_user_in_flight|modify_return|link_in_flight|"
			"lsm_in_flight|xdp|xdp_off\n");
	return 2;
}
