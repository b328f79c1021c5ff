// SPDX-License-Identifier: GPL-2.0-only
// An attack simulator for test guests (attack.h): what guards the kernel, switched off.
#include "attack.h"

#include <linux/jump_label.h>
#include <linux/lsm_hooks.h>
#include <linux/smp.h>
#include <linux/static_call.h>
#include <linux/string.h>

// The hook that decides about ptrace: several security modules stand in it.
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)

static struct lsm_static_call *call;
static void *called;

// Security modules fill the slots from the last to the first, so the first that is on is called first.
static struct lsm_static_call *first_call(void)
{
	struct lsm_static_calls_table *table = attack_symbol("static_calls_table");
	size_t index;
	if (table)
		for (index = 0; index < ARRAY_SIZE(table->ptrace_access_check); index++)
			if (static_key_enabled(&table->ptrace_access_check[index].active->key))
				return &table->ptrace_access_check[index];
	return NULL;
}

static int lsm_remove_on(const char *argument)
{
	call = first_call();
	if (!call)
		return -EOPNOTSUPP;
	static_key_disable(&call->active->key);
	return 0;
}

static void lsm_remove_off(void)
{
	static_key_enable(&call->active->key);
}

static int lsm_replace_on(const char *argument)
{
	void *code;
	call = first_call();
	if (!call)
		return -EOPNOTSUPP;
	called = call->key->func;
	code = attack_code(argument, called);
	if (!code)
		return -ENOMEM;
	__static_call_update(call->key, call->trampoline, code);
	return 0;
}

static void lsm_replace_off(void)
{
	__static_call_update(call->key, call->trampoline, called);
}

#else

static struct patch unlink, replace;

static struct hlist_head *hook_list(void)
{
	struct security_hook_heads *heads = attack_symbol("security_hook_heads");
	return heads && heads->ptrace_access_check.first ? &heads->ptrace_access_check : NULL;
}

static int lsm_remove_on(const char *argument)
{
	struct hlist_head *list = hook_list();
	return list ? patch_apply(&unlink, &list->first, &list->first->next, sizeof(list->first)) : -EOPNOTSUPP;
}

static void lsm_remove_off(void)
{
	patch_revert(&unlink);
}

static int lsm_replace_on(const char *argument)
{
	struct hlist_head *list = hook_list();
	struct security_hook_list *hook;
	void *code;
	if (!list)
		return -EOPNOTSUPP;
	hook = hlist_entry(list->first, struct security_hook_list, list);
	code = attack_code(argument, hook->hook.ptrace_access_check);
	return code ? patch_apply(&replace, &hook->hook.ptrace_access_check, &code, sizeof(code)) : -ENOMEM;
}

static void lsm_replace_off(void)
{
	patch_revert(&replace);
}

#endif

// The first byte of a variable.
static int set_byte(struct patch *patch, const char *symbol, u8 value)
{
	u8 *at = attack_symbol(symbol);
	if (!at)
		return -EOPNOTSUPP;
	if (*at == value)
		return -EALREADY;
	return patch_apply(patch, at, &value, 1);
}

static struct patch locked, lockdown, enforcing, kptr, tracer, killed_tracer, audit, taint, record, gone;

// Only where modules were disabled before; nobody but an attacker can enable them again. As this module cannot come
// in then, it disables them itself: with "lock" as ARGUMENT that is all.
static int unlocked_on(const char *argument)
{
	return set_byte(&locked, "modules_disabled", !strcmp(argument, "lock"));
}

static void unlocked_off(void)
{
	patch_revert(&locked);
}

static int lockdown_on(const char *argument)
{
	return set_byte(&lockdown, "kernel_locked_down", 0);
}

static void lockdown_off(void)
{
	patch_revert(&lockdown);
}

// struct selinux_state begins with it, or has it behind `disabled`, which is gone since 6.4.
static int selinux_on(const char *argument)
{
	static const u8 no;
	u8 *state = attack_symbol("selinux_state");
	if (!state)
		return -EOPNOTSUPP;
#ifdef CONFIG_SECURITY_SELINUX_DISABLE
	state++;
#endif
	return *state == 1 ? patch_apply(&enforcing, state, &no, 1) : -EALREADY;
}

static void selinux_off(void)
{
	patch_revert(&enforcing);
}

static int kptr_on(const char *argument)
{
	return set_byte(&kptr, "kptr_restrict", 0);
}

static void kptr_off(void)
{
	patch_revert(&kptr);
}

static int tracer_on(const char *argument)
{
	return set_byte(&tracer, "ftrace_enabled", 0);
}

static void tracer_off(void)
{
	patch_revert(&tracer);
}

static int killed_tracer_on(const char *argument)
{
	return set_byte(&killed_tracer, "ftrace_disabled", 1);
}

static void killed_tracer_off(void)
{
	patch_revert(&killed_tracer);
}

static int audit_on(const char *argument)
{
	return set_byte(&audit, "audit_enabled", 0);
}

static void audit_off(void)
{
	patch_revert(&audit);
}

static int taint_on(const char *argument)
{
	static const unsigned long none;
	unsigned long *mask = attack_symbol("tainted_mask");
	if (!mask)
		return -EOPNOTSUPP;
	return *mask ? patch_apply(&taint, mask, &none, sizeof(none)) : -EALREADY;
}

static void taint_off(void)
{
	patch_revert(&taint);
}

// The line by which the kernel told of this module's coming is made unreadable.
static int record_on(const char *argument)
{
	static const char text[] = "lararium_attack: loading", blank[16] = "                ";
	char *begin = attack_symbol("__log_buf"), *at;
	u32 *length = attack_symbol("log_buf_len");
	if (!begin || !length || *length < sizeof(text))
		return -EOPNOTSUPP;
	for (at = begin; at <= begin + *length - sizeof(text); at++)
		if (!memcmp(at, text, sizeof(text) - 1))
			return patch_apply(&record, at, blank, sizeof(blank));
	return -ENODATA;
}

static void record_off(void)
{
	patch_revert(&record);
}

// The beginning of the kernel's own struct printk_ringbuffer and struct prb_desc (5.10, 896fbe20b4e2).
struct record_ring {
	unsigned int count_bits;
	struct {
		atomic_long_t state;
		unsigned long begin, next;
	} *records;
	void *details;
	atomic_long_t head, tail;
};

// A record in the midst of the log becomes one that nobody wrote yet: who reads the log goes on behind it.
static int removed_on(const char *argument)
{
	const unsigned long free = 3UL << (BITS_PER_LONG - 2);
	struct record_ring **pointer = attack_symbol("prb"), *ring;
	unsigned long tail, id, state;
	atomic_long_t *at;
	if (!pointer)
		return -EOPNOTSUPP;
	ring = *pointer;
	tail = atomic_long_read(&ring->tail);
	id = (tail + (atomic_long_read(&ring->head) - tail) / 2) & ~free;
	at = &ring->records[id & ((1UL << ring->count_bits) - 1)].state;
	if ((atomic_long_read(at) & ~free) != id)
		return -EAGAIN;
	state = id | free;
	return patch_apply(&gone, at, &state, sizeof(state));
}

static void removed_off(void)
{
	patch_revert(&gone);
}

// Every CPU may write to read-only pages; nothing does.
static void set_write_protection(void *on)
{
	unsigned long value;
	asm volatile("mov %%cr0, %0" : "=r"(value));
	value = on ? value | X86_CR0_WP : value & ~(unsigned long)X86_CR0_WP;
	asm volatile("mov %0, %%cr0" : : "r"(value) : "memory");
}

static int write_protection_on(const char *argument)
{
	on_each_cpu(set_write_protection, NULL, 1);
	return 0;
}

static void write_protection_off(void)
{
	on_each_cpu(set_write_protection, (void *)1, 1);
}

struct attack attack_defences[] = {
	{"lsm_hook_removed", lsm_remove_on, lsm_remove_off},
	{"lsm_hook_replaced", lsm_replace_on, lsm_replace_off},
	{"modules_enabled", unlocked_on, unlocked_off},
	{"lockdown_lifted", lockdown_on, lockdown_off},
	{"selinux_permissive", selinux_on, selinux_off},
	{"kptr_restrict", kptr_on, kptr_off},
	{"ftrace_off", tracer_on, tracer_off},
	{"ftrace_killed", killed_tracer_on, killed_tracer_off},
	{"audit_off", audit_on, audit_off},
	{"taint_reset", taint_on, taint_off},
	{"log_record_changed", record_on, record_off},
	{"log_record_removed", removed_on, removed_off},
	{"write_protection_off", write_protection_on, write_protection_off},
	{},
};
