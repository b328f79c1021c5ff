// Attack simulators for test guests, in user space: they exist only to test detection in our own test guests, and do
// nothing beyond the change that is to be detected. Each command makes its own process look like one thing that a check
// of Lararium's must find, prints "ready pid=...", and waits until it is killed. Tests start it, in guests that they
// booted themselves. More such processes come from lab/guest/workload.c.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/io_uring.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const char *self;

static void check(int failed, const char *what)
{
	if (failed) {
		fprintf(stderr, "attack_program: %s: %s\n", what, strerror(errno));
		exit(1);
	}
}

static void ready(void)
{
	printf("ready pid=%d\n", getpid());
	fflush(stdout);
}

__attribute__((noreturn)) static int wait_forever(void)
{
	ready();
	for (;;)
		pause();
}

// Memory that is writable and executable at once, with a function in it, as injected code has.
static int writable_code(void)
{
	static const unsigned char code[] = {0x55, 0x48, 0x89, 0xe5, 0x31, 0xc0, 0x5d, 0xc3}; // return 0
	unsigned char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(page == MAP_FAILED, "mmap");
	memcpy(page, code, sizeof code);
	((void (*)(void))(uintptr_t)page)();
	return wait_forever();
}

__attribute__((noinline, aligned(4096))) static int changed_function(void)
{
	return 1;
}

// The program's own text differs from its file.
static int changed_text(void)
{
	unsigned char *page = (unsigned char *)((uintptr_t)changed_function & ~4095ul);
	check(mprotect(page, 4096, PROT_READ | PROT_WRITE | PROT_EXEC), "mprotect");
	page[0] ^= 0xff; // nobody calls the function
	check(mprotect(page, 4096, PROT_READ | PROT_EXEC), "mprotect");
	return wait_forever();
}

extern char __executable_start, etext, _start;

// The program's whole text is put out of the way by memory that is of no file, with other code where it began: what a
// hollowed process looks like. The rest stays what it was, so that the process lives on.
static int hollowed(void)
{
	char *begin = (char *)((uintptr_t)&__executable_start & ~4095ul);
	size_t size = ((uintptr_t)&etext - (uintptr_t)begin + 4095) & ~4095ul;
	char *copy = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(copy == MAP_FAILED, "mmap");
	memcpy(copy, begin, size);
	copy[&_start - begin] ^= 0xff; // it began to run long ago
	check(mprotect(copy, size, PROT_READ | PROT_EXEC), "mprotect");
	check(mremap(copy, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, begin) == MAP_FAILED, "mremap");
	return wait_forever();
}

// The program starts anew with an environment that would put a library into each program that it starts.
static int preload(void)
{
	char *const line[] = {(char *)self, "wait", NULL};
	char *const environment[] = {"LD_PRELOAD=/tmp/libattack.so", NULL};
	execve(self, line, environment);
	check(1, "execve");
	return 1;
}

// The file of libraries that the dynamic linker would put into each program that starts. The library does not exist.
static int preload_file(void)
{
	FILE *file = fopen("/etc/ld.so.preload", "w");
	check(!file, "/etc/ld.so.preload");
	fputs("/tmp/libattack.so\n", file);
	check(fclose(file), "/etc/ld.so.preload");
	return wait_forever();
}

// A file is read and a connection made and used by io_uring alone, as programs do that hide from whoever watches system
// calls. Nobody but the program itself is at the other end.
struct ring {
	int fd;
	unsigned *head, *tail, *mask, *array, *done_head, *done_tail, *done_mask;
	struct io_uring_sqe *requests;
	struct io_uring_cqe *results;
};

static struct ring ring_open(unsigned entries)
{
	struct io_uring_params params = {0};
	struct ring ring = {.fd = syscall(SYS_io_uring_setup, entries, &params)};
	char *queue, *done;
	check(ring.fd < 0, "io_uring_setup");
	queue = mmap(NULL, params.sq_off.array + params.sq_entries * sizeof(unsigned), PROT_READ | PROT_WRITE, MAP_SHARED,
		     ring.fd, IORING_OFF_SQ_RING);
	done = mmap(NULL, params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe), PROT_READ | PROT_WRITE,
		    MAP_SHARED, ring.fd, IORING_OFF_CQ_RING);
	ring.requests = mmap(NULL, params.sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE, MAP_SHARED,
			     ring.fd, IORING_OFF_SQES);
	check(queue == MAP_FAILED || done == MAP_FAILED || ring.requests == MAP_FAILED, "mmap");
	ring.head = (unsigned *)(queue + params.sq_off.head);
	ring.tail = (unsigned *)(queue + params.sq_off.tail);
	ring.mask = (unsigned *)(queue + params.sq_off.ring_mask);
	ring.array = (unsigned *)(queue + params.sq_off.array);
	ring.done_head = (unsigned *)(done + params.cq_off.head);
	ring.done_tail = (unsigned *)(done + params.cq_off.tail);
	ring.done_mask = (unsigned *)(done + params.cq_off.ring_mask);
	ring.results = (struct io_uring_cqe *)(done + params.cq_off.cqes);
	return ring;
}

// One request, done by a worker thread of the kernel's; gives its result.
static int ring_do(struct ring *ring, unsigned char operation, int fd, const void *address, unsigned length, uint64_t offset)
{
	unsigned tail = *ring->tail, index = tail & *ring->mask;
	struct io_uring_sqe *request = &ring->requests[index];
	int result;
	memset(request, 0, sizeof *request);
	request->opcode = operation;
	request->flags = IOSQE_ASYNC;
	request->fd = fd;
	request->addr = (uintptr_t)address;
	request->len = length;
	request->off = offset;
	ring->array[index] = index;
	__atomic_store_n(ring->tail, tail + 1, __ATOMIC_RELEASE);
	check(syscall(SYS_io_uring_enter, ring->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0, "io_uring_enter");
	result = ring->results[*ring->done_head & *ring->done_mask].res;
	__atomic_store_n(ring->done_head, *ring->done_head + 1, __ATOMIC_RELEASE);
	errno = -result;
	check(result < 0, "a request");
	return result;
}

static int ring_work(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t length = sizeof address;
	struct ring ring = ring_open(8);
	char text[64];
	int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
	int server, file, round;
	check(bind(listener, (void *)&address, sizeof address) || listen(listener, 1) ||
	      getsockname(listener, (void *)&address, &length), "listen");
	ring_do(&ring, IORING_OP_CONNECT, client, &address, 0, sizeof address);
	server = ring_do(&ring, IORING_OP_ACCEPT, listener, NULL, 0, 0);
	file = ring_do(&ring, IORING_OP_OPENAT, AT_FDCWD, "/proc/self/exe", 0, 0);
	for (round = 0; round < 20; round++) {
		ring_do(&ring, IORING_OP_READ, file, text, sizeof text, 0);
		ring_do(&ring, IORING_OP_SEND, client, text, sizeof text, 0);
		ring_do(&ring, IORING_OP_RECV, server, text, sizeof text, 0);
	}
	return wait_forever();
}

// The same connection in the ring's own table, with its descriptors closed: no list of open files has it.
static int ring_sockets(void)
{
	int ends[2];
	char text[8] = "lab";
	struct ring ring = ring_open(8);
	check(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), "socketpair");
	check(syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_FILES, ends, 2), "io_uring_register");
	ring_do(&ring, IORING_OP_WRITE, ends[0], text, sizeof text, 0);
	close(ends[0]);
	close(ends[1]);
	return wait_forever();
}

// The command line of a miner; it computes nothing and talks to nobody, it only keeps a CPU busy half of the time.
static int miner(void)
{
	char *const line[] = {"/tmp/xmrig", "-o", "stratum+tcp://127.0.0.1:3333", "-u", "wallet", "--donate-level=1", NULL};
	check(setenv("ATTACK_PROGRAM", "spin", 1), "setenv");
	execv(self, line);
	check(1, "execv");
	return 1;
}

// A miner under another name: it keeps a CPU busy half of the time and has room for the dataset of RandomX, 2080 MiB,
// of which it never touches a byte.
static int miner_memory(void)
{
	char *const line[] = {"/usr/lib/updater", NULL};
	check(setenv("ATTACK_PROGRAM", "miner_memory_spin", 1), "setenv");
	execv(self, line);
	check(1, "execv");
	return 1;
}

__attribute__((noreturn)) static int spin(void);

static int miner_memory_spin(void)
{
	const size_t guard = 4096, size = (size_t)2080 << 20;
	char *room = mmap(NULL, size + 2 * guard, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	check(room == MAP_FAILED, "mmap");
	check(mmap(room + guard, size, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED, "mmap");
	spin();
}

__attribute__((noreturn)) static int spin(void)
{
	const struct timespec rest = {0, 10000000};
	ready();
	for (;;) {
		const clock_t end = clock() + CLOCKS_PER_SEC / 100;
		while (clock() < end)
			;
		nanosleep(&rest, NULL);
	}
}

// An audit daemon, as far as the kernel can tell, with auditing on; killed by SIGTERM it switches it off again.
static int audit_socket;

static void audit_set(unsigned mask, unsigned enabled)
{
	struct {
		struct nlmsghdr header;
		struct audit_status status;
	} message = {{sizeof message, AUDIT_SET, NLM_F_REQUEST, 0, 0}, {.mask = mask, .enabled = enabled, .pid = getpid()}};
	check(send(audit_socket, &message, sizeof message, 0) != sizeof message, "AUDIT_SET");
}

static void audit_end(int signal)
{
	(void)signal;
	audit_set(AUDIT_STATUS_ENABLED, 0);
	_exit(0);
}

__attribute__((noreturn)) static int audit_daemon(void)
{
	struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
	char record[9000];
	audit_socket = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_AUDIT);
	check(audit_socket < 0, "socket");
	check(connect(audit_socket, (struct sockaddr *)&kernel, sizeof kernel), "connect");
	signal(SIGTERM, audit_end);
	audit_set(AUDIT_STATUS_PID | AUDIT_STATUS_ENABLED, 1);
	ready();
	for (;;)
		if (recv(audit_socket, record, sizeof record, 0) < 0 && errno != EINTR && errno != ENOBUFS)
			check(1, "recv");
}

int main(int count, char **arguments)
{
	static const struct {
		const char *name;
		int (*run)(void);
	} commands[] = {{"writable_code", writable_code}, {"changed_text", changed_text}, {"hollowed", hollowed},
			{"preload", preload},             {"preload_file", preload_file}, {"miner", miner},               {"wait", wait_forever},
			{"spin", spin},                   {"ring_work", ring_work},       {"ring_sockets", ring_sockets},
			{"miner_memory", miner_memory},   {"miner_memory_spin", miner_memory_spin},
			{"audit_daemon", audit_daemon}};
	const char *name = getenv("ATTACK_PROGRAM") ? getenv("ATTACK_PROGRAM") : count > 1 ? arguments[1] : "";
	size_t index;
	self = "/proc/self/exe";
	for (index = 0; index < sizeof commands / sizeof *commands; index++)
		if (!strcmp(commands[index].name, name))
			return commands[index].run();
	fprintf(stderr, "usage: attack_program writable_code|changed_text|hollowed|preload|preload_file|miner|miner_memory|ring_work|ring_sockets|"
			"audit_daemon\n");
	return 2;
}
