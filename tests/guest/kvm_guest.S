/* A guest that is its own firmware (64 KiB, -bios): what runs under a KVM that is itself in a VM, where no Linux boots
   and no BIOS gets far. It goes to long mode with page tables that map RAM where it lies, and once more where Linux would
   have its kernel; leaves a mark below and, told to by test_kvm.py, above 4 GiB; and counts, with known values in its
   registers. Both know these numbers. */

#define ROM 0xffff0000
#define RAM 0x8000 /* where it is linked to run, once it has copied itself there */
#define COPIED 0x200

#define PML4 0x10000
#define LOW_POINTERS 0x11000 /* page directory pointers: 0 to 1 GiB, and 4 to 5 GiB */
#define HIGH_POINTERS 0x12000 /* of the last 512 GiB */
#define LOW 0x13000 /* page directories, of 2 MiB pages */
#define ABOVE_4G 0x14000

#define MARK 0x100000 /* physical: the mark, then the counter */
#define MARK_ABOVE_4G 0x100200000

    .globl _start
_start:

    .code32
protected:
    movw $16, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $ROM, %esi
    movl $RAM, %edi
    movl $COPIED, %ecx
    rep movsb
    movl $in_ram, %eax
    jmp *%eax
in_ram:
    lgdt pointer
    movl $PML4, %edi
    movl $(5 * 1024), %ecx
    xorl %eax, %eax
    rep stosl
    movl $(LOW_POINTERS + 3), PML4
    movl $(HIGH_POINTERS + 3), PML4 + 8 * 511
    movl $(LOW + 3), LOW_POINTERS
    movl $(ABOVE_4G + 3), LOW_POINTERS + 8 * 4
    movl $(LOW + 3), HIGH_POINTERS + 8 * 510
    movl $0x83, %eax
    xorl %ebx, %ebx
1:  movl %eax, LOW(, %ebx, 8)
    movl %eax, ABOVE_4G(, %ebx, 8)
    movl $1, ABOVE_4G + 4(, %ebx, 8)
    addl $0x200000, %eax
    incl %ebx
    cmpl $512, %ebx
    jb 1b
    movl %cr4, %eax
    orb $0x20, %al /* PAE */
    movl %eax, %cr4
    movl $PML4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx /* EFER */
    rdmsr
    orb $1, %ah /* LME */
    wrmsr
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    ljmp $24, $long_mode

    .code64
long_mode:
    movabsq $0x0123456789abcdef, %rbx
    movq %rbx, MARK
    cmpb $0, has_memory_above_4g
    je 2f
    movabsq $MARK_ABOVE_4G, %rsi
    movq %rbx, (%rsi)
2:  movabsq $0xfedcba9876543210, %r15
1:  incq MARK + 8
    jmp 1b

    .balign 8
table:
    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00af9b000000ffff
rom_pointer:
    .word rom_pointer - table - 1
    .long ROM + table - RAM
pointer:
    .word rom_pointer - table - 1
    .long table
    .org COPIED - 1
has_memory_above_4g:
    .byte 0

    /* Where the CPU begins. Its code segment lies at ROM. */
    .org 0xffd0
    .code16
reset:
    cli
    lgdtl %cs:(rom_pointer - RAM)
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmpl $8, $(ROM + protected - RAM)
    .org 0xfff0
    jmp reset
    .org 0x10000
