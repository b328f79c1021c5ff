// Makes files, mappings and threads of many kinds in a guest and holds on to them. Prints "ready pid=..." when all is
// there. test_vfs_views.py compiles it, statically, and brings it to the guest.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#define CHECK(expression) check((long)(expression), #expression)

enum { page = 4096 };

static long check(long result, const char *what)
{
	if (result == -1) {
		printf("failed: %s: %s\n", what, strerror(errno));
		exit(1);
	}
	return result;
}

static _Noreturn void wait_forever(const char *words)
{
	printf("ready pid=%d %s\n", getpid(), words);
	fflush(stdout);
	for (;;)
		pause();
}

static char *map(void *at, size_t length, int protection, int flags, int fd, off_t offset)
{
	char *address = mmap(at, length, protection, flags, fd, offset);
	CHECK(address == MAP_FAILED ? -1 : 0);
	return address;
}

// More areas than one level of a tree's nodes holds, of every kind.
static int areas(int count)
{
	static const int protections[] = {PROT_READ, PROT_READ | PROT_WRITE, PROT_NONE, PROT_READ | PROT_EXEC};
	mkdir("/tmp/areas", 0755);
	for (int i = 0; i < count; i++)
		map(NULL, (1 + i % 3) * page, protections[i % 4], MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int file = CHECK(open("/bin/busybox", O_RDONLY));
	for (int i = 1; i < 20; i++)
		map(NULL, page, PROT_READ, i % 2 ? MAP_PRIVATE : MAP_SHARED, file, (off_t)(i * 3) * page);
	int odd = CHECK(open("/tmp/areas/a b\nc\xff", O_RDWR | O_CREAT, 0644));
	CHECK(ftruncate(odd, 8 * page));
	map(NULL, 8 * page, PROT_READ | PROT_WRITE, MAP_SHARED, odd, 0)[0] = 1;
	int gone = CHECK(open("/tmp/areas/gone", O_RDWR | O_CREAT, 0644));
	CHECK(ftruncate(gone, 8 * page));
	map(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, gone, page)[0] = 1;
	CHECK(unlink("/tmp/areas/gone"));
	int memory = CHECK(memfd_create("areas", 0));
	CHECK(ftruncate(memory, 4 * page));
	map(NULL, 4 * page, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0)[0] = 1;
	close(memory);
	map(NULL, 4 * page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int zero = CHECK(open("/dev/zero", O_RDWR));
	map(NULL, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE, zero, 0);
	map(NULL, 4 * page, PROT_READ | PROT_WRITE, MAP_SHARED, zero, 0);
	int segment = CHECK(shmget(0x1ab, 4 * page, IPC_CREAT | 0600));
	CHECK(shmat(segment, NULL, 0) == (void *)-1 ? -1 : 0);
	char *grows = map(NULL, 16 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN, -1, 0);
	grows[15 * page] = 1;
	prctl(0x53564d41 /* PR_SET_VMA */, 0, grows, 16 * page, "lab name"); // not in every kernel
	char *shared_name = map(NULL, 4 * page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	prctl(0x53564d41, 0, shared_name, 4 * page, "lab shared");
	CHECK(sbrk(64 * page) == (void *)-1 ? -1 : 0);
	// Areas that were merged, split, moved and taken away again.
	char *whole = map(NULL, 64 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (int i = 1; i < 64; i += 4)
		CHECK(munmap(whole + i * page, page));
	CHECK(mprotect(whole + 2 * page, page, PROT_READ));
	CHECK(mremap(whole + 6 * page, 2 * page, 32 * page, MREMAP_MAYMOVE) == MAP_FAILED ? -1 : 0);
	volatile char deep[512 * 1024]; // the stack grows
	deep[0] = 1;
	(void)deep[0];
	wait_forever("");
}

static void link_namespace(const char *name)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/self/ns/%s", name);
	int fd = open(path, O_RDONLY);
	if (fd < 0)
		printf("no %s\n", path); // not in every kernel
}

static int files(int count)
{
	struct rlimit limit = {4096, 4096};
	int pair[2];
	char words[64];
	CHECK(setrlimit(RLIMIT_NOFILE, &limit));
	mkdir("/tmp/files", 0755);
	int file = CHECK(open("/tmp/files/data", O_RDWR | O_CREAT | O_APPEND | O_SYNC, 0644));
	CHECK(write(file, "0123456789", 10));
	CHECK(lseek(file, 7, SEEK_SET));
	for (int i = 0; i < count; i++) // more than a process' own table holds, and not in one row
		CHECK(fcntl(file, i % 2 ? F_DUPFD_CLOEXEC : F_DUPFD, i % 5 ? 0 : 3 * i));
	CHECK(open("/tmp/files/data", O_PATH | O_CLOEXEC));
	CHECK(open("/tmp/files", O_RDONLY | O_DIRECTORY));
	CHECK(open("/tmp/files/data", O_WRONLY | O_NOFOLLOW | O_NONBLOCK));
	CHECK(open("/tmp/files/a b\nc\\\xff\xc3\xa4", O_RDONLY | O_CREAT, 0644));
	CHECK(symlink("data", "/tmp/files/link") && errno != EEXIST ? -1 : 0);
	CHECK(open("/tmp/files/link", O_PATH | O_NOFOLLOW));
	int gone = CHECK(open("/tmp/files/gone", O_RDWR | O_CREAT, 0600));
	CHECK(write(gone, "gone", 4));
	CHECK(unlink("/tmp/files/gone"));
	CHECK(mkdir("/tmp/files/folder", 0755));
	CHECK(open("/tmp/files/folder", O_RDONLY));
	CHECK(open("/tmp/files/folder/inside", O_RDWR | O_CREAT, 0600));
	CHECK(unlink("/tmp/files/folder/inside"));
	CHECK(rmdir("/tmp/files/folder"));
	CHECK(open("/tmp", O_RDWR | O_TMPFILE, 0600));
	mkfifo("/tmp/files/fifo", 0600);
	CHECK(open("/tmp/files/fifo", O_RDWR));
	CHECK(open("/dev/null", O_RDWR));
	CHECK(open("/dev/ptmx", O_RDWR | O_NOCTTY));
	CHECK(open("/proc/self/status", O_RDONLY));
	CHECK(open("/proc/sys/kernel/hostname", O_RDONLY));
	CHECK(open("/sys/kernel/uevent_seqnum", O_RDONLY));
	CHECK(pipe(pair));
	CHECK(pipe2(pair, O_DIRECT | O_CLOEXEC));
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	CHECK(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0));
	CHECK(eventfd(1, EFD_NONBLOCK));
	CHECK(epoll_create1(EPOLL_CLOEXEC));
	CHECK(timerfd_create(CLOCK_REALTIME, 0));
	CHECK(inotify_init());
	syscall(SYS_pidfd_open, getpid(), 0);
	syscall(SYS_userfaultfd, O_CLOEXEC);
	int memory = CHECK(memfd_create("a name", MFD_CLOEXEC | MFD_ALLOW_SEALING));
	for (int i = 0; i < 40; i++)
		CHECK(pwrite(memory, &i, sizeof i, (off_t)i * 3 * page));
	static const char *const spaces[] = {"mnt", "pid", "net", "uts", "ipc", "user", "cgroup", "time",
					     "pid_for_children"};
	for (size_t i = 0; i < sizeof spaces / sizeof *spaces; i++)
		link_namespace(spaces[i]);
	snprintf(words, sizeof words, "file=%d gone=%d memory=%d", file, gone, memory);
	wait_forever(words);
}

static void *blocked(void *argument)
{
	static const struct timespec long_time = {100000, 0};
	syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, (long)argument & 0, &long_time, NULL, 0x1234, 0x5678);
	return NULL;
}

static void *spinning(void *argument)
{
	for (;;)
		__asm__ volatile("mov $0x1122334455667788, %%r12\n\tmov $0x99, %%r13" : : : "r12", "r13");
	return argument;
}

static int threads(int spinners)
{
	pthread_t thread;
	for (int i = 0; i < 4; i++)
		CHECK(pthread_create(&thread, NULL, blocked, NULL) ? -1 : 0);
	for (int i = 0; i < spinners; i++)
		CHECK(pthread_create(&thread, NULL, spinning, NULL) ? -1 : 0);
	wait_forever("");
}

// The leader ends, the others go on.
static void *without_leader(void *argument)
{
	usleep(200000);
	wait_forever("");
	return argument;
}

static int leaderless(int count)
{
	pthread_t thread;
	CHECK(open("/dev/null", O_RDONLY) + count);
	CHECK(pthread_create(&thread, NULL, without_leader, NULL) ? -1 : 0);
	syscall(SYS_exit, 0);
	return 1;
}

// A process whose areas and descriptors change all the time.
static int restless(int count)
{
	printf("ready pid=%d\n", getpid());
	fflush(stdout);
	char *areas[256] = {0};
	int descriptors[256];
	memset(descriptors, -1, sizeof descriptors);
	for (unsigned i = 0; count == 0 || i < (unsigned)count; i++) {
		unsigned slot = i * 7 % 256;
		if (areas[slot])
			munmap(areas[slot], 4 * page);
		areas[slot] = map(NULL, 4 * page, i % 3 ? PROT_READ : PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		close(descriptors[slot]);
		descriptors[slot] = i % 2 ? eventfd(0, 0) : open("/dev/null", O_RDONLY);
	}
	return 0;
}

// Maps every page of a file, so that all are in memory, and lets go of it.
static int touch(const char *path)
{
	struct stat status;
	int fd = CHECK(open(path, O_RDONLY));
	CHECK(fstat(fd, &status));
	volatile const char *bytes = map(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, fd, 0);
	unsigned sum = 0;
	for (off_t at = 0; at < status.st_size; at += page)
		sum += (unsigned char)bytes[at];
	return sum == 1;
}

int main(int argc, char **argv)
{
	const char *command = argc > 1 ? argv[1] : "";
	int number = argc > 2 ? atoi(argv[2]) : 0;
	if (!strcmp(command, "areas"))
		return areas(number);
	if (!strcmp(command, "files"))
		return files(number);
	if (!strcmp(command, "threads"))
		return threads(number);
	if (!strcmp(command, "leaderless"))
		return leaderless(number);
	if (!strcmp(command, "restless"))
		return restless(number);
	if (!strcmp(command, "touch") && argc > 2)
		return touch(argv[2]);
	return 2;
}
