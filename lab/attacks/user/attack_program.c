// Attack simulators for test guests, in user space: each command makes its own process look like one thing that a check
// of Lararium's must find, prints "ready pid=...", and does nothing else until it is killed. It is started by tests
// only, in guests that they booted themselves. More such processes come from lab/guest/workload.c.
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
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

// The program starts anew with an environment that would put a library into each program that it starts.
static int preload(void)
{
	char *const line[] = {(char *)self, "wait", NULL};
	char *const environment[] = {"LD_PRELOAD=/tmp/libattack.so", NULL};
	execve(self, line, environment);
	check(1, "execve");
	return 1;
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

int main(int count, char **arguments)
{
	static const struct {
		const char *name;
		int (*run)(void);
	} commands[] = {{"writable_code", writable_code}, {"changed_text", changed_text}, {"preload", preload},
			{"miner", miner},                 {"wait", wait_forever},         {"spin", spin}};
	const char *name = getenv("ATTACK_PROGRAM") ? getenv("ATTACK_PROGRAM") : count > 1 ? arguments[1] : "";
	size_t index;
	self = "/proc/self/exe";
	for (index = 0; index < sizeof commands / sizeof *commands; index++)
		if (!strcmp(commands[index].name, name))
			return commands[index].run();
	fprintf(stderr, "usage: attack_program writable_code|changed_text|preload|miner\n");
	return 2;
}
