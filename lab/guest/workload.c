#include <stdio.h>
#include <unistd.h>
int main(void) { printf("ready pid=%d\n", getpid()); fflush(stdout); for (;;) pause(); }
