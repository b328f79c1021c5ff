/* From the reset vector to long mode, for the first CPU and those that it starts. */

#include "layout.h"

#define SELECTOR_CODE32 0x08
#define SELECTOR_DATA 0x10
#define SELECTOR_CODE64 0x18
#define GDT_ENTRIES 16 /* up to BARE_CPU_NUMBER */

#define CR0_PE (1 << 0)
#define CR0_WP (1 << 16)
#define CR0_PG (1 << 31)
#define CR4_PAE (1 << 5)
#define MSR_EFER 0xc0000080
#define EFER_LME (1 << 8)

#define PAGE_PRESENT 1
#define PAGE_WRITABLE 2
#define PAGE_LARGE 0x80

/* Real mode, in the last 16 bytes below 4 GiB. */
    .section .reset, "ax"
    .code16
    jmp rom16

    .section .rom, "ax"
rom16:
    cli
    cld
    lgdtl %cs:(rom_gdt_pointer - 0xffff0000)
    movl %cr0, %eax
    orl $CR0_PE, %eax
    movl %eax, %cr0
    ljmpl $SELECTOR_CODE32, $rom32

    .code32
rom32:
    movw $SELECTOR_DATA, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $rom, %esi
    movl $image_begin, %edi
    movl $image_end, %ecx
    subl %edi, %ecx
    rep movsb
    movl $bss_begin, %edi
    movl $bss_end, %ecx
    subl %edi, %ecx
    xorl %eax, %eax
    rep stosb
    movl $start, %eax
    jmp *%eax

    .balign 8
rom_gdt:
    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
rom_gdt_pointer:
    .word . - rom_gdt - 1
    .long rom_gdt

/* From here on in RAM. */
    .section .text.start, "ax"
    .code32
    .globl start
start:
    lgdtl gdt_pointer
    movw $SELECTOR_DATA, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    /* 4 GiB, one to one, in large pages. */
    movl $page_directories, %edi
    movl $(PAGE_PRESENT | PAGE_WRITABLE | PAGE_LARGE), %eax
    movl $(4 * 512), %ecx
1:  movl %eax, (%edi)
    movl $0, 4(%edi)
    addl $0x200000, %eax
    addl $8, %edi
    loop 1b
    movl $page_directory_pointers, %edi
    movl $page_directories + (PAGE_PRESENT | PAGE_WRITABLE), %eax
    movl $4, %ecx
1:  movl %eax, (%edi)
    addl $0x1000, %eax
    addl $8, %edi
    loop 1b
    movl $page_directory_pointers + (PAGE_PRESENT | PAGE_WRITABLE), page_table
    xorl %ebp, %ebp /* the first CPU */

enter_long_mode:
    movl %cr4, %eax
    orl $CR4_PAE, %eax
    movl %eax, %cr4
    movl $page_table, %eax
    movl %eax, %cr3
    movl $MSR_EFER, %ecx
    rdmsr
    orl $EFER_LME, %eax
    wrmsr
    movl %cr0, %eax
    orl $(CR0_PG | CR0_WP), %eax
    movl %eax, %cr0
    ljmpl $SELECTOR_CODE64, $start64

    .code64
start64:
    movl %ebp, %edi
    leal 1(%rbp), %eax
    shll $12, %eax
    leaq stacks(%rax), %rsp
    /* Its own GDT, which has its number. */
    movl %ebp, %eax
    imull $(8 * GDT_ENTRIES), %eax
    leaq gdt(%rax), %rax
    subq $16, %rsp
    movw $(8 * GDT_ENTRIES - 1), 6(%rsp)
    movq %rax, 8(%rsp)
    lgdt 6(%rsp)
    addq $16, %rsp
    xorl %ebp, %ebp
    lidt interrupt_table_pointer
    call run_cpu
1:  hlt
    jmp 1b

/* Where a CPU begins that the first one starts: copied below 1 MiB, and runs there at any address. */
    .globl start_other, start_other_end
    .code16
start_other:
    cli
    cld
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl %cs:(other_gdt_pointer - start_other)
    movl %cr0, %eax
    orl $CR0_PE, %eax
    movl %eax, %cr0
    ljmpl $SELECTOR_CODE32, $start_other32
    .balign 4
other_gdt_pointer:
    .word 8 * GDT_ENTRIES - 1
    .long gdt
start_other_end:

    .code32
start_other32:
    movw $SELECTOR_DATA, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $1, %ebp
    lock xaddl %ebp, next_cpu
    cmpl $BARE_MAX_CPUS, %ebp
    jb enter_long_mode
1:  hlt
    jmp 1b

/* Exceptions: the number and the error code on the stack, then one way for all. */
    .code64
    .text
    .altmacro
    .macro exception number
    .balign 16
    .if (\number == 8) || (\number >= 10 && \number <= 14) || \number == 17 || \number == 21 || \number == 29 || \number == 30
    .else
    pushq $0
    .endif
    pushq $\number
    jmp exception_common
    .endm

    .balign 16
    .globl exception_entries
exception_entries:
    .set i, 0
    .rept 32
    exception %i
    .set i, i + 1
    .endr

exception_common:
    movq %rsp, %rdi
    cld
    andq $~15, %rsp
    call report_exception
1:  hlt
    jmp 1b

/* Wakes a CPU that waits; nothing else. */
    .globl wake_entry
wake_entry:
    pushq %rax
    movl $0xfee000b0, %eax
    movl $0, (%rax)
    popq %rax
    iretq

/* uint64_t call_hooked_function(volatile uint64_t *counter): the call that hooks replace, and what it gave: 0, or what
 * a hook put there. Its displacement lies in one word of 8 bytes, so that it can be written while another CPU runs it. */
    .balign 16
    .globl call_hooked_function, call_site, hooked_function
call_hooked_function:
    xorl %eax, %eax
call_with_registers:
    leaq -8(%rsp), %rsp
call_site:
    call hooked_function
    leaq 8(%rsp), %rsp
    ret

/* Counts: the caller's counter is in %rdi. No register and no flag is another one afterwards. With padding in front, as
 * the kernel's functions have it. */
    .fill 16, 1, 0x90
    .balign 16
hooked_function:
    pushq %rax
    movq (%rdi), %rax
    leaq 1(%rax), %rax
    movq %rax, (%rdi)
    popq %rax
    ret

/* uint64_t call_with_patterns(volatile uint64_t *counter, volatile uint64_t *changed): the same call, with interrupts
 * on and a pattern of its own in each register: BARE_PATTERN in %rax, BARE_PATTERN + n in the n-th argument. Gives %rax,
 * and counts at `changed` where another register, or a flag, is not as it was. */
#define PATTERN_FLAGS 0xad7 /* those of arithmetic, and interrupts on; the direction is what C calls expect */
    .balign 16
    .globl call_with_patterns
call_with_patterns:
    .irp register, rbx, rbp, r12, r13, r14, r15, rsi, rdi
    pushq %\register
    .endr
    .set i, 0
    .irp register, rax, rsi, rdx, rcx, r8, r9, rbx, rbp, r10, r11, r12, r13, r14, r15
    movabsq $(BARE_PATTERN + i), %\register
    .set i, i + 1
    .endr
    pushq $PATTERN_FLAGS
    popfq
    call call_with_registers
    pushfq
    cli
    .irp register, rdi, r15, r14, r13, r12, r11, r10, rbp, rbx, r9, r8, rcx, rdx, rsi, rax
    pushq %\register
    .endr
    popq %rsi       /* what was %rax */
    xorl %ecx, %ecx /* all differences of the others */
    .set i, 1
    .rept 13
    popq %rdx
    movabsq $(BARE_PATTERN + i), %rax
    xorq %rax, %rdx
    orq %rdx, %rcx
    .set i, i + 1
    .endr
    popq %rdi
    popq %rdx
    xorq $PATTERN_FLAGS, %rdx
    orq %rdx, %rcx
    popq %rax
    xorq %rax, %rdi
    orq %rdi, %rcx
    popq %rdx
    jz 1f
    incq (%rdx)
1:  movq %rsi, %rax
    .irp register, r15, r14, r13, r12, rbp, rbx
    popq %\register
    .endr
    ret

    .data
    .balign 8
/* Of each CPU. The last entry is a segment that user mode may look at, whose limit is the CPU's number, as Linux has it
 * (setup_getcpu()). */
gdt:
    .set cpu, 0
    .rept BARE_MAX_CPUS
    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00af9b000000ffff
    .fill GDT_ENTRIES - 5, 8, 0
    .quad 0x0000f50000000000 + cpu
    .set cpu, cpu + 1
    .endr
gdt_pointer:
    .word 8 * GDT_ENTRIES - 1
    .long gdt
    .balign 8
    .globl interrupt_table_pointer
interrupt_table_pointer:
    .word 256 * 16 - 1
    .quad interrupt_table
    .balign 4
next_cpu:
    .long 1

    .bss
    .balign 4096
page_table: .skip 4096
page_directory_pointers: .skip 4096
page_directories: .skip 4 * 4096
stacks: .skip BARE_MAX_CPUS * 4096
    .globl interrupt_table
interrupt_table: .skip 256 * 16

    .section .note.GNU-stack, "", @progbits
