/* What the bare-metal guest and those who look at it from outside have agreed on. All addresses are guest-physical, and
 * the guest maps them one to one. Constants are single lines: lab/bare_metal.py and C++ programs read them, too. */
#ifndef LARARIUM_LAB_BARE_METAL_LAYOUT_H
#define LARARIUM_LAB_BARE_METAL_LAYOUT_H

#define BARE_MAX_CPUS 4
#define BARE_FREE 0x10000 /* to BARE_FREE_END: RAM that the guest never touches; for trampolines and the like */
#define BARE_FREE_END 0x80000
#define BARE_IMAGE 0x100000    /* code and data of the guest, from its ROM */
#define BARE_CONTROL 0x200000  /* struct bare_control */
#define BARE_SLOTS 0x210000    /* struct bare_slot of each CPU, a page each */
#define BARE_TARGETS 0x1000000 /* what `write` writes to: the first word of each CPU's block */
#define BARE_BELLS 0x2000000   /* the bell of each CPU, in a block of its own */
#define BARE_BLOCK 0x200000    /* blocks are huge pages of the host's, so that each can be protected by itself */
#define BARE_MEMORY 0x4000000  /* the least RAM that the guest runs with */

#define BARE_CPU_NUMBER 0x7b            /* a segment whose limit is the CPU's number */
#define BARE_PATTERN 0x5a17c0de3b960000 /* in %rax of BARE_JOB_REGISTERS' calls; + n: the n-th argument */
#define BARE_MAGIC 0x314d45524142ULL    /* "BAREM1" */

#ifndef __ASSEMBLER__
#include <stdint.h>

enum bare_job {
  BARE_JOB_NONE,
  BARE_JOB_WRITE,     /* counts at `address`: each round a write there */
  BARE_JOB_CALL,      /* calls the function of `hooked_function`, at `call_site` */
  BARE_JOB_GATE,      /* the same through a hook of the guest's own: slot and bell */
  BARE_JOB_COMPUTE,   /* a round is a few thousand multiplications */
  BARE_JOB_REGISTERS, /* BARE_JOB_CALL with something in every register, which is looked at afterwards */
};

/* What a CPU does. `job` may be set from outside too: a CPU that waits looks at it once in a millisecond or so. */
struct bare_cpu {
  volatile uint64_t job;
  volatile uint64_t rounds;       /* done since the job was given */
  volatile uint64_t limit;        /* ends the job; 0: never */
  volatile uint64_t address;      /* of BARE_JOB_WRITE */
  volatile uint64_t pause;        /* ticks of the CPU's clock between rounds */
  volatile uint64_t allowed;      /* of jobs that call: calls that reached the function, */
  volatile uint64_t denied;       /* and those that a hook answered with an error */
  volatile uint64_t unanswered;   /* of these: by the default verdict, as nobody wrote one */
  volatile uint64_t rung;         /* bells that were needed */
  volatile uint64_t began, ended; /* the CPU's clock at the first and at the last round */
  volatile uint64_t changed;      /* of BARE_JOB_REGISTERS: calls after which something was not as before */
  volatile uint64_t result;       /* what the last call gave; BARE_PATTERN of BARE_JOB_REGISTERS, where allowed */
  volatile uint64_t reserved[3];
};

struct bare_control {
  volatile uint64_t magic; /* BARE_MAGIC, once the guest is up */
  volatile uint64_t cpus;
  volatile uint64_t hooked_function, call_site; /* addresses; at the latter is a call of 5 bytes */
  volatile uint64_t awake;           /* not 0: somebody watches the slots, and the hook spins before it rings */
  volatile uint64_t spins;           /* how often it looks before it does */
  volatile uint64_t default_verdict; /* 0: allow; -1: deny */
  volatile uint64_t reserved[9];
  struct bare_cpu cpu[BARE_MAX_CPUS];
};

/* An event on its way. The guest writes `event`, `argument` and the default verdict, then sets `state` to asked;
 * whoever answers writes `verdict`, then sets it to answered. */
enum bare_slot_state { BARE_SLOT_IDLE, BARE_SLOT_ASKED, BARE_SLOT_ANSWERED };
struct bare_slot {
  volatile uint64_t state;
  volatile uint64_t event; /* counts up */
  volatile uint64_t argument;
  volatile uint64_t verdict; /* 0: allow; else the call is not made */
};

#endif /* __ASSEMBLER__ */
#endif
