// How the pages that the gate puts into a guest lie, and what is in them. The assembler reads this, too: only #defines.
//
// All offsets are from the area's first byte, in the guest's kernel address space.
#pragma once

// Few pages: kernels before 5.13 set no more aside than the first 64 KiB of memory, of which firmware leaves 9 in a
// row.
#define GATE_CODE_PAGES 1
#define GATE_BOARD 0x1000 // what the monitor says to all CPUs,
#define GATE_STUBS 0x1080 // and to the end of its page: what each stub hooks, and for which arguments
#define GATE_SITES 0x2000 // one page: which calls of the kernel lead here, and what stood there
#define GATE_CPUS 0x3000  // GATE_CPU_SIZE a CPU: the monitor's answers. From here on lengths depend on the CPUs.

#define GATE_SIM_SIZE 0x2000 // of the code of sim/sim_code.cpp, where there is any

// The board. The guest cannot write to it. Its place, magic number and version stay where they are in later versions.
#define BOARD_MAGIC 0x00
#define BOARD_VERSION 0x08    // 4 bytes
#define BOARD_ON 0x0c         // 1 byte; 0: go on at once
#define BOARD_DEFAULT 0x0d    // 1 byte: the verdict when nobody answers
#define BOARD_AWAKE 0x10      // 4 bytes; not 0: the monitor looks at the slots, wait for it before you ring
#define BOARD_GENERATION 0x14 // 4 bytes: which monitor this is, counted in this guest
#define BOARD_CPU_COUNT 0x18  // 4 bytes
#define BOARD_STUB_COUNT 0x1c // 4 bytes
#define BOARD_SITE_COUNT 0x20 // 4 bytes
#define BOARD_SPIN 0x28       // 8 bytes: so many cycles for a monitor that is awake
#define BOARD_PATIENCE 0x30   // 8 bytes: so many more when the bell rang and nobody answered, then never again
#define BOARD_HEARTBEAT 0x38  // 8 bytes: the monitor's sign of life, another one several times in a second
#define BOARD_SIM_DATA 0x40   // 8 bytes: address of the pages of sim/layout.h
#define BOARD_SIM_SPACE 0x48  // 8 bytes: CR3 of the address space in which these lie; 0: they lie in every one
#define BOARD_CR3_KEEP 0x50   // 8 bytes: what CR3 takes besides, on the way back
#define BOARD_PAGES 0x58      // 4 bytes: of the whole area, that of which no process has a map too
#define BOARD_OFF 0x5c        // 4 bytes, a bit a hook: the code in the guest lets its calls go on, and tells nothing,
#define BOARD_BRIEF 0x60      // 4 bytes: or tells who called, not with what
#define BOARD_RINGS 0x68      // 8 bytes: the window in which a device's memory with the rings lies; 0: there is none
#define BOARD_SIZE 0x70

// A stub's entry. The guest cannot write to it.
#define STUB_ENTRY_SIZE 32
#define STUB_ARGUMENT 0x00 // 1 byte: 0, or which argument (1 to 6) decides whether anything happens at all
#define STUB_HOOK 0x01     // 1 byte: which hook, for those who find this
#define STUB_SIM 0x02      // 1 byte: whether the code in the guest takes it first, and what it does where no rule fits:
#define STUB_SIM_RECORD 1
#define STUB_SIM_ASK 2
#define STUB_PLAN 0x03       // 1 byte: what it keeps of a call (sim/layout.h)
#define STUB_FIRST_SITE 0x04 // 1 byte: of the list of hooked calls
#define STUB_SITE_COUNT 0x05 // 1 byte; 0: who calls cannot be told
#define STUB_SKIP 0x06       // 1 byte: not 0: only what rules ask for is recorded
#define STUB_MAY_DENY 0x07   // 1 byte
#define STUB_MASK 0x08       // 8 bytes: of the argument,
#define STUB_VALUE_A 0x10    // 8 bytes: it is this,
#define STUB_VALUE_B 0x18    // 8 bytes: or this

// A CPU. The guest cannot write to it.
#define GATE_CPU_SIZE 64
#define CPU_ANSWER 0x00    // 8 bytes: number of the event << 8 | 0 (go on) or an errno
#define CPU_BELL 0x08      // 8 bytes: address of its first bell
#define CPU_BELL_MASK 0x10 // 8 bytes: (bells - 1) << 12, bells a power of two
#define CPU_SLOT 0x18      // 8 bytes: address of its slot
#define CPU_TAIL 0x20      // 8 bytes: how far its ring was read
#define CPU_STATE 0x28     // 8 bytes: address of its CpuPage,
#define CPU_RING 0x30      // 8 bytes: of its ring,
#define CPU_DOORBELL 0x38  // 8 bytes: and of the first of two pages that it writes to when its ring fills

// A slot, which the guest writes.
#define SLOT_SIZE 128
#define SLOT_NUMBER 0x00    // 8 bytes, the last to be written: the event is there
#define SLOT_ARGUMENTS 0x08 // rdi, rsi, rdx, rcx, r8, r9
#define SLOT_STACK 0x38     // the stack pointer at the call
#define SLOT_CALLER 0x40    // where the call returns to
#define SLOT_STUB 0x48      // 4 bytes
#define SLOT_ABANDONED 0x4c // 4 bytes: the generation that did not answer

// A stub: call enter; jmp to the watched function; int3 to its end.
#define STUB_SIZE 16
