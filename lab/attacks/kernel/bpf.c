// SPDX-License-Identifier: GPL-2.0-only
// An attack simulator for test guests (attack.h): a BPF program, named by its number, that is not what the kernel's
// tables say of it. It exists only to test detection.
#include "attack.h"

#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/idr.h>
#include <linux/spinlock.h>

static struct idr *table;
static spinlock_t *table_lock;
static int number;
static struct bpf_prog *hidden, *marked;

static struct bpf_prog *choose(const char *argument)
{
	struct bpf_prog *program;
	table = attack_symbol("prog_idr");
	table_lock = attack_symbol("prog_idr_lock");
	if (!table || !table_lock || kstrtoint(argument, 10, &number))
		return NULL;
	spin_lock_bh(table_lock);
	program = idr_find(table, number);
	spin_unlock_bh(table_lock);
	return program;
}

static int hide_on(const char *argument)
{
	hidden = choose(argument);
	if (!hidden)
		return -ESRCH;
	spin_lock_bh(table_lock);
	idr_remove(table, number);
	spin_unlock_bh(table_lock);
	return 0;
}

static void hide_off(void)
{
	idr_preload(GFP_KERNEL);
	spin_lock_bh(table_lock);
	idr_alloc(table, hidden, number, number + 1, GFP_ATOMIC);
	spin_unlock_bh(table_lock);
	idr_preload_end();
}

// The mark by which the kernel lets a program decide what functions return; few kernels are built with that.
static int override_on(const char *argument)
{
	marked = choose(argument);
	if (!marked)
		return -ESRCH;
	marked->kprobe_override = 1;
	return 0;
}

static void override_off(void)
{
	marked->kprobe_override = 0;
}

struct attack attack_bpf[] = {
	{"bpf_hidden", hide_on, hide_off},
	{"bpf_override", override_on, override_off},
	{},
};
