// SPDX-License-Identifier: GPL-2.0-only
// An attack simulator for test guests (attack.h): tables and protections of each CPU, changed in registers alone, and page
// tables that belong to nobody. (LSTAR and its kin are in system_calls.c, CR0.WP is in defences.c.)
#include "attack.h"

#include <asm/desc.h>
#include <linux/delay.h>
#include <linux/gfp.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/smp.h>
#include <linux/string.h>

// User page tables map neither what a module allocates, with page table isolation: then a CPU could not use it.
static bool is_isolated(void)
{
	return boot_cpu_has(X86_FEATURE_PTI);
}

static void load_idt_of(void *table)
{
	struct desc_ptr pointer = {256 * sizeof(gate_desc) - 1, (unsigned long)table};
	asm volatile("lidt %0" : : "m"(pointer));
}

static struct desc_ptr idt;
static void *own_idt;

// Every CPU takes interrupts by a copy of the kernel's table.
static int own_idt_on(const char *argument)
{
	if (is_isolated())
		return -EOPNOTSUPP;
	asm volatile("sidt %0" : "=m"(idt));
	own_idt = (void *)get_zeroed_page(GFP_KERNEL);
	if (!own_idt)
		return -ENOMEM;
	memcpy(own_idt, (void *)idt.address, min_t(size_t, idt.size + 1, PAGE_SIZE));
	on_each_cpu(load_idt_of, own_idt, 1);
	return 0;
}

static void own_idt_off(void)
{
	on_each_cpu(load_idt_of, (void *)idt.address, 1);
	free_page((unsigned long)own_idt);
}

static struct desc_ptr gdt[8];
static void *own_gdt[8];

static void load_own_gdt(void *unused)
{
	const unsigned int cpu = smp_processor_id();
	struct desc_ptr pointer;
	asm volatile("sgdt %0" : "=m"(gdt[cpu]));
	memcpy(own_gdt[cpu], (void *)gdt[cpu].address, gdt[cpu].size + 1);
	pointer.size = gdt[cpu].size;
	pointer.address = (unsigned long)own_gdt[cpu];
	asm volatile("lgdt %0" : : "m"(pointer));
}

static void load_first_gdt(void *unused)
{
	asm volatile("lgdt %0" : : "m"(gdt[smp_processor_id()]));
}

static void free_own_gdts(void)
{
	int cpu;
	for (cpu = 0; cpu < ARRAY_SIZE(own_gdt); cpu++)
		free_page((unsigned long)own_gdt[cpu]);
}

// The same for segments.
static int own_gdt_on(const char *argument)
{
	int cpu;
	if (is_isolated() || nr_cpu_ids > ARRAY_SIZE(own_gdt))
		return -EOPNOTSUPP;
	for (cpu = 0; cpu < ARRAY_SIZE(own_gdt); cpu++) {
		own_gdt[cpu] = (void *)get_zeroed_page(GFP_KERNEL);
		if (!own_gdt[cpu]) {
			free_own_gdts();
			return -ENOMEM;
		}
	}
	on_each_cpu(load_own_gdt, NULL, 1);
	return 0;
}

static void own_gdt_off(void)
{
	on_each_cpu(load_first_gdt, NULL, 1);
	free_own_gdts();
}

static unsigned long switched_off;

// Past the kernel's own function, which would put pinned bits back.
static void change_cr4(void *on)
{
	unsigned long value;
	asm volatile("mov %%cr4, %0" : "=r"(value));
	value = on ? value | switched_off : value & ~switched_off;
	asm volatile("mov %0, %%cr4" : : "r"(value) : "memory");
}

// ARGUMENT: smep or smap. (Without PKE a kernel that uses it would not live to its next change of tasks.)
static int protection_off_on(const char *argument)
{
	unsigned long value;
	switched_off = !strcmp(argument, "smap") ? X86_CR4_SMAP : X86_CR4_SMEP;
	asm volatile("mov %%cr4, %0" : "=r"(value));
	if ((value & switched_off) == 0)
		return -EOPNOTSUPP;
	on_each_cpu(change_cr4, NULL, 1);
	return 0;
}

static void protection_off_off(void)
{
	on_each_cpu(change_cr4, (void *)1, 1);
}

static struct task_struct *user;
static void *own_table;

// A page table of its own most of the time, with the kernel's half of that which it found.
static int use_own_table(void *unused)
{
	while (!kthread_should_stop()) {
		unsigned long flags, before, own;
		int i;
		local_irq_save(flags);
		asm volatile("mov %%cr3, %0" : "=r"(before));
		memcpy(own_table, __va(before & PHYSICAL_PAGE_MASK), PAGE_SIZE);
		own = __pa(own_table) | (before & 0xfff);
		asm volatile("mov %0, %%cr3" : : "r"(own) : "memory");
		for (i = 0; i < 30; i++)
			mdelay(10);
		asm volatile("mov %0, %%cr3" : : "r"(before) : "memory");
		local_irq_restore(flags);
		msleep(20);
	}
	return 0;
}

static int own_table_on(const char *argument)
{
	own_table = (void *)get_zeroed_page(GFP_KERNEL);
	if (!own_table)
		return -ENOMEM;
	user = kthread_create(use_own_table, NULL, "lab_own_table");
	if (IS_ERR(user)) {
		free_page((unsigned long)own_table);
		return PTR_ERR(user);
	}
	kthread_bind(user, cpumask_last(cpu_online_mask));
	wake_up_process(user);
	return 0;
}

static void own_table_off(void)
{
	kthread_stop(user);
	free_page((unsigned long)own_table);
}

struct attack attack_registers[] = {
	{"own_idt", own_idt_on, own_idt_off},
	{"own_gdt", own_gdt_on, own_gdt_off},
	{"protection_off", protection_off_on, protection_off_off},
	{"own_page_table", own_table_on, own_table_off},
	{},
};
