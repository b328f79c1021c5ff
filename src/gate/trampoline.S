// The code that runs in the guest. A hooked call leads to a stub:
//
//     stub:  call enter                  which tells by its return address which one it is
//            jmp  the watched function   the way on; nothing of ours is on the stack any more
//
// It calls nothing of the guest's, and reads and writes nothing but the pages behind it (trampoline_layout.h), the
// stack, and the CPU's number, which Linux keeps in a segment limit of the GDT for user mode (setup_getcpu()). Hooks in
// the mode `sim` call sim/sim_code.cpp, which reads what the call's arguments point to.
//
// Interrupts are off from the first instruction to the last: one event a CPU, no preemption, and a CPU that stands
// outside these pages is outside this code. Every register is as it was on the way on; the way back changes rax alone.

#include "trampoline_layout.h"

#define CPU_NUMBER_SEGMENT 0x7b // __CPUNODE_SEG

    .section .rodata.lararium_trampoline, "a", @progbits
    .globl lararium_trampoline, lararium_trampoline_end, lararium_sim_call, lararium_sim_call_in_space
    .balign 16
lararium_trampoline:
    .set area, lararium_trampoline

// Waits until the event r11 is answered, or for the cycles at LIMIT of the board; rax, rcx, rdx are lost. Goes to
// `answered` if it is.
.macro wait_for_answer limit
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    mov %rax, %rcx                       // since when
1:  mov CPU_ANSWER(%r10), %rax
    shr $8, %rax
    cmp %r11, %rax
    je answered
    pause
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    sub %rcx, %rax
    cmp (area + GATE_BOARD + \limit)(%rip), %rax
    jb 1b
.endm

enter:
    pushfq
    cli
    push %rax
    push %rcx
    push %rdx
    push %r10
    push %r11
    // On the stack: r11 r10 rdx rcx rax flags, the stub's address, the caller's.
    cmpb $0, (area + GATE_BOARD + BOARD_ON)(%rip)
    je go_on
    mov $CPU_NUMBER_SEGMENT, %eax
    lsl %eax, %eax
    and $0xfff, %eax
    cmp (area + GATE_BOARD + BOARD_CPU_COUNT)(%rip), %eax
    jae go_on
    shl $6, %eax                         // GATE_CPU_SIZE
    lea (area + GATE_CPUS)(%rip), %r10
    add %rax, %r10                       // r10: this CPU
    mov CPU_SLOT(%r10), %r11             // r11: its slot

    mov 48(%rsp), %rcx
    lea stubs(%rip), %rdx
    sub %rdx, %rcx
    shr $4, %rcx                         // STUB_SIZE
    mov %ecx, SLOT_STUB(%r11)
    mov 56(%rsp), %rax
    mov %rax, SLOT_CALLER(%r11)
    lea 56(%rsp), %rax
    mov %rax, SLOT_STACK(%r11)
    mov %rdi, SLOT_ARGUMENTS(%r11)
    mov %rsi, (SLOT_ARGUMENTS + 8)(%r11)
    mov 16(%rsp), %rax
    mov %rax, (SLOT_ARGUMENTS + 16)(%r11)
    mov 24(%rsp), %rax
    mov %rax, (SLOT_ARGUMENTS + 24)(%r11)
    mov %r8, (SLOT_ARGUMENTS + 32)(%r11)
    mov %r9, (SLOT_ARGUMENTS + 40)(%r11)

    // Not every call is an event.
    shl $5, %rcx                         // STUB_ENTRY_SIZE
    lea (area + GATE_STUBS)(%rip), %rdx
    add %rcx, %rdx
    movzbl STUB_ARGUMENT(%rdx), %ecx
    test %ecx, %ecx
    jz is_event
    mov (SLOT_ARGUMENTS - 8)(%r11, %rcx, 8), %rax
    and STUB_MASK(%rdx), %rax
    cmp STUB_VALUE_A(%rdx), %rax
    je is_event
    cmp STUB_VALUE_B(%rdx), %rax
    jne go_on
is_event:
    cmpb $0, STUB_SIM(%rdx)
    jne in_guest

post:
    mov (area + GATE_BOARD + BOARD_GENERATION)(%rip), %eax
    cmp SLOT_ABANDONED(%r11), %eax
    je by_default                        // nobody is there
    mov %r11, %rcx
    mov CPU_ANSWER(%r10), %r11
    shr $8, %r11
    inc %r11                             // r11: the event's number, one more than the last that was answered
    mov %r11, SLOT_NUMBER(%rcx)

    cmpl $0, (area + GATE_BOARD + BOARD_AWAKE)(%rip)
    je ring
    wait_for_answer BOARD_SPIN
ring:
    mov %r11, %rax
    shl $12, %rax
    and CPU_BELL_MASK(%r10), %rax
    add CPU_BELL(%r10), %rax
    mov %r11, (%rax)                     // here the CPU stands while the monitor decides
    mov CPU_ANSWER(%r10), %rax
    shr $8, %rax
    cmp %r11, %rax
    je answered
    wait_for_answer BOARD_PATIENCE
    mov CPU_SLOT(%r10), %rcx
    mov (area + GATE_BOARD + BOARD_GENERATION)(%rip), %eax
    mov %eax, SLOT_ABANDONED(%rcx)
by_default:
    movzbl (area + GATE_BOARD + BOARD_DEFAULT)(%rip), %eax
    jmp decided
answered:
    movzbl CPU_ANSWER(%r10), %eax
decided:
    test %eax, %eax
    jnz refuse
go_on:
    pop %r11
    pop %r10
    pop %rdx
    pop %rcx
    pop %rax
    popfq
    ret                                  // to the stub, which jumps on
refuse:
    neg %rax                             // -errno; of a function that gives a pointer: ERR_PTR
    mov %rax, 32(%rsp)
    pop %r11
    pop %r10
    pop %rdx
    pop %rcx
    pop %rax
    popfq
    lea 8(%rsp), %rsp                    // not to the stub
    ret

// The part of the monitor that is in the guest decides, or leaves it to us. rdx: the stub's entry.
in_guest:
    push %rdi
    push %rsi
    push %r8
    push %r9
    push %r10
    push %r11
    mov %r10, %rcx
    mov %r11, %rsi
    mov (area + GATE_BOARD + BOARD_SIM_DATA)(%rip), %rdi
    lea (area + GATE_BOARD)(%rip), %r8
    lea (area + GATE_SITES)(%rip), %r9
    mov (area + GATE_BOARD + BOARD_SIM_SPACE)(%rip), %r11
    test %r11, %r11
    jnz in_space
lararium_sim_call:
    call area                            // where the code lies, is filled in
was_in_guest:
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rsi
    pop %rdi
    test %eax, %eax
    js post
    jz go_on
    mov %eax, %eax
    jmp refuse

// The same in an address space, and on a stack, that no one else has. Its tables have all of the kernel's, for
// interrupts that cannot be masked, and no process'. Nothing that it maps is kept afterwards.
in_space:
    mov %cr3, %rax
    mov %r11, %cr3
    mov %rsp, %r11
    mov CPU_STATE(%r10), %rsp
    add $0x1000, %rsp
    push %rax
    push %r11
lararium_sim_call_in_space:
    call area
    pop %r11
    pop %rcx
    mov %r11, %rsp
    or (area + GATE_BOARD + BOARD_CR3_KEEP)(%rip), %rcx
    mov %rcx, %cr3
    jmp was_in_guest

    .balign STUB_SIZE, 0xcc
stubs:
lararium_trampoline_end:
    .section .note.GNU-stack, "", @progbits
