// SPDX-License-Identifier: GPL-2.0-only
// An attack simulator for test guests (attack.h): code and read-only data of the kernel and of another module.
#include "attack.h"

#include <linux/kthread.h>
#include <linux/sched.h>
#include <linux/string.h>

static struct patch inline_patch, call_patch, padding_patch, rodata_patch, module_patch, module_padding_patch, module_rodata_patch;

static bool is_nop(const u8 *at)
{
	static const u8 usual[] = {0x0f, 0x1f, 0x44, 0x00, 0x00}, older[] = {0x66, 0x66, 0x66, 0x66, 0x90};
	return !memcmp(at, usual, sizeof(usual)) || !memcmp(at, older, sizeof(older)); // before 5.13, by the CPU
}

// A jump over the 5-byte nop that every traceable function begins with: nothing has to be displaced.
static int jump_at_start(struct patch *patch, u8 *function, const char *argument)
{
	u8 *at = function;
	void *code;
	if (!function)
		return -EOPNOTSUPP;
	if (!is_nop(at))
		at += 4; // endbr64
	if (!is_nop(at))
		return -EBUSY;
	code = attack_code(argument, at + 5);
	return code ? patch_branch(patch, at, 0xe9, code) : -ENOMEM;
}

static int change_padding(struct patch *patch, u8 *function)
{
	u8 byte;
	if (!function)
		return -EOPNOTSUPP;
	byte = function[-1] ^ 0x11;
	return patch_apply(patch, function - 1, &byte, 1);
}

static int inline_on(const char *argument)
{
	return jump_at_start(&inline_patch, attack_symbol("__x64_sys_sethostname"), argument);
}

static void inline_off(void)
{
	patch_revert(&inline_patch);
}

static int call_on(const char *argument)
{
	u8 *function = attack_symbol("vfs_statfs");
	u8 *at = find_branch(function, symbol_size(function), NULL);
	void *code;
	if (!at)
		return -EOPNOTSUPP;
	code = attack_code(argument, branch_target(at));
	return code ? patch_branch(&call_patch, at, 0, code) : -ENOMEM;
}

static void call_off(void)
{
	patch_revert(&call_patch);
}

// A byte that is never run: it leads nowhere, so only a comparison with known text can find it.
static int padding_on(const char *argument)
{
	return change_padding(&padding_patch, attack_symbol("__x64_sys_sethostname"));
}

static void padding_off(void)
{
	patch_revert(&padding_patch);
}

// The format of /proc/version.
static int rodata_on(const char *argument)
{
	char *text = attack_symbol("linux_proc_banner"), *at = text ? strstr(text, "version") : NULL;
	return at ? patch_apply(&rodata_patch, at, "V", 1) : -EOPNOTSUPP;
}

static void rodata_off(void)
{
	patch_revert(&rodata_patch);
}

// The same, again and again until it is switched off.
static struct task_struct *storm;
static int rodata_storm_main(void *text)
{
	while (!kthread_should_stop()) {
		if (!patch_apply(&rodata_patch, text, "V", 1))
			patch_revert(&rodata_patch);
		cond_resched();
	}
	return 0;
}
static int rodata_storm_on(const char *argument)
{
	char *text = attack_symbol("linux_proc_banner"), *at = text ? strstr(text, "version") : NULL;
	if (!at)
		return -EOPNOTSUPP;
	storm = kthread_run(rodata_storm_main, at, "rodata_storm");
	return PTR_ERR_OR_ZERO(storm);
}

static void rodata_storm_off(void)
{
	kthread_stop(storm);
}

// The module dummy has to be loaded.
static int module_on(const char *argument)
{
	return jump_at_start(&module_patch, attack_symbol("dummy:dummy_xmit"), argument);
}

static void module_off(void)
{
	patch_revert(&module_patch);
}

static int module_padding_on(const char *argument)
{
	return change_padding(&module_padding_patch, attack_symbol("dummy:dummy_xmit"));
}

static void module_padding_off(void)
{
	patch_revert(&module_padding_patch);
}

// What dummy can do for ethtool: a table that is read-only, and of which nothing is called for this.
static int module_rodata_on(const char *argument)
{
	u8 *table = attack_symbol("dummy:dummy_ethtool_ops"), byte;
	if (!table)
		return -EOPNOTSUPP;
	byte = *table ^ 1;
	return patch_apply(&module_rodata_patch, table, &byte, 1);
}

static void module_rodata_off(void)
{
	patch_revert(&module_rodata_patch);
}

struct attack attack_text[] = {
	{"text_inline_jump", inline_on, inline_off},
	{"text_call", call_on, call_off},
	{"text_byte", padding_on, padding_off},
	{"rodata_byte", rodata_on, rodata_off},
	{"rodata_storm", rodata_storm_on, rodata_storm_off},
	{"module_text_jump", module_on, module_off},
	{"module_text_byte", module_padding_on, module_padding_off},
	{"module_rodata_byte", module_rodata_on, module_rodata_off},
	{},
};
