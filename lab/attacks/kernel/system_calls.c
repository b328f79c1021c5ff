// SPDX-License-Identifier: GPL-2.0-only
// An attack simulator for test guests (attack.h): the way into a system call or an interrupt. What is put in between
// only jumps on to what was there before.
#include "attack.h"

#include <asm/desc.h>
#include <asm/msr.h>
#include <asm/unistd.h>
#include <linux/smp.h>

static int patch_table(struct patch *patch, const char *table, int number, const char *argument)
{
	void **entry = attack_symbol(table);
	void *code;
	if (!entry)
		return -EOPNOTSUPP;
	code = attack_code(argument, entry[number]);
	return code ? patch_apply(patch, entry + number, &code, sizeof(code)) : -ENOMEM;
}

// Every kill() goes through the code in between.
static struct patch table, table_32, dispatch, dispatch_32, entry_call, idt, gdt;

static int table_on(const char *argument)
{
	return patch_table(&table, "sys_call_table", __NR_kill, argument);
}

static void table_off(void)
{
	patch_revert(&table);
}

static int table_32_on(const char *argument)
{
	return patch_table(&table_32, "ia32_sys_call_table", 37, argument); // kill
}

static void table_32_off(void)
{
	patch_revert(&table_32);
}

static int redirect(struct patch *patch, const char *function, const char *called, const char *argument)
{
	u8 *begin = attack_symbol(function);
	u8 *at = find_branch(begin, symbol_size(begin), attack_symbol(called));
	void *code;
	if (!at || !attack_symbol(called))
		return -EOPNOTSUPP;
	code = attack_code(argument, branch_target(at));
	return code ? patch_branch(patch, at, 0, code) : -ENOMEM;
}

static int dispatch_on(const char *argument)
{
	return redirect(&dispatch, "x64_sys_call", "__x64_sys_kill", argument);
}

static void dispatch_off(void)
{
	patch_revert(&dispatch);
}

static int dispatch_32_on(const char *argument)
{
	return redirect(&dispatch_32, "ia32_sys_call", "__ia32_sys_kill", argument);
}

static void dispatch_32_off(void)
{
	patch_revert(&dispatch_32);
}

static int entry_call_on(const char *argument)
{
	static const char *const called[] = {"syscall_exit_to_user_mode", "syscall_enter_from_user_mode",
					     "x64_sys_call", "__x86_indirect_thunk_rax", "irqentry_exit_to_user_mode"};
	int result = -EOPNOTSUPP;
	size_t index;
	for (index = 0; index < ARRAY_SIZE(called) && result == -EOPNOTSUPP; index++)
		result = redirect(&entry_call, "do_syscall_64", called[index], argument);
	return result;
}

static void entry_call_off(void)
{
	patch_revert(&entry_call);
}

// The overflow exception: nothing in a guest raises it.
static int idt_on(const char *argument)
{
	gate_desc *gates = attack_symbol("idt_table"), gate;
	void *code;
	if (!gates)
		return -EOPNOTSUPP;
	gate = gates[4];
	code = attack_code(argument, (void *)gate_offset(&gate));
	if (!code)
		return -ENOMEM;
	gate.offset_low = (unsigned long)code;
	gate.offset_middle = (unsigned long)code >> 16;
	gate.offset_high = (unsigned long)code >> 32;
	return patch_apply(&idt, gates + 4, &gate, sizeof(gate));
}

static void idt_off(void)
{
	patch_revert(&idt);
}

// A code segment with the kernel's privilege that user mode could load through a far return is not needed to see it:
// one more descriptor in an entry that Linux leaves empty.
static int gdt_on(const char *argument)
{
	struct desc_struct *entries = get_cpu_gdt_rw(0), code = entries[GDT_ENTRY_DEFAULT_USER_CS];
	return patch_apply(&gdt, entries + GDT_ENTRY_DEFAULT_USER_CS + 1, &code, sizeof(code));
}

static void gdt_off(void)
{
	patch_revert(&gdt);
}

// A register of every CPU.
struct msr_change {
	u32 msr;
	u64 old, new;
};

static void write_msr(void *change)
{
	const struct msr_change *c = change;
	wrmsr(c->msr, (u32)c->new, (u32)(c->new >> 32));
}

static void change_msr(struct msr_change *change, u64 value)
{
	change->new = value;
	on_each_cpu(write_msr, change, 1);
}

static u64 read_msr(u32 msr)
{
	u32 low, high;
	rdmsr(msr, low, high);
	return (u64)high << 32 | low;
}

// Where a system call leads to, with code in between.
static int redirect_entry(struct msr_change *change, u32 msr, const char *argument)
{
	void *code;
	if (boot_cpu_has(X86_FEATURE_PTI)) // user page tables do not map what is in between
		return -EOPNOTSUPP;
	change->msr = msr;
	change->old = read_msr(msr);
	if (!change->old)
		return -EOPNOTSUPP;
	code = attack_code(argument, (void *)change->old);
	if (!code)
		return -ENOMEM;
	change_msr(change, (u64)code);
	return 0;
}

static struct msr_change lstar, cstar, sysenter, fmask;

static int lstar_on(const char *argument)
{
	return redirect_entry(&lstar, MSR_LSTAR, argument);
}

static void lstar_off(void)
{
	change_msr(&lstar, lstar.old);
}

static int cstar_on(const char *argument)
{
	return redirect_entry(&cstar, MSR_CSTAR, argument);
}

static void cstar_off(void)
{
	change_msr(&cstar, cstar.old);
}

static int sysenter_on(const char *argument)
{
	return redirect_entry(&sysenter, MSR_IA32_SYSENTER_EIP, argument);
}

static void sysenter_off(void)
{
	change_msr(&sysenter, sysenter.old);
}

// A program that sets AC keeps it in the kernel, and with it the kernel's access to the program's memory.
static int fmask_on(const char *argument)
{
	fmask.msr = MSR_SYSCALL_MASK;
	fmask.old = read_msr(fmask.msr);
	change_msr(&fmask, fmask.old & ~X86_EFLAGS_AC);
	return 0;
}

static void fmask_off(void)
{
	change_msr(&fmask, fmask.old);
}

struct attack attack_system_calls[] = {
	{"syscall_table", table_on, table_off},
	{"syscall_table_32", table_32_on, table_32_off},
	{"syscall_dispatch", dispatch_on, dispatch_off},
	{"syscall_dispatch_32", dispatch_32_on, dispatch_32_off},
	{"syscall_entry_call", entry_call_on, entry_call_off},
	{"lstar", lstar_on, lstar_off},
	{"cstar", cstar_on, cstar_off},
	{"sysenter", sysenter_on, sysenter_off},
	{"fmask", fmask_on, fmask_off},
	{"idt_entry", idt_on, idt_off},
	{"gdt_entry", gdt_on, gdt_off},
	{},
};
