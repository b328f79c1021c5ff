// SPDX-License-Identifier: GPL-2.0-only
// A live patch for test guests: security_socket_bind() asks nobody and counts how often it is called. It exists to test that
// hooks on a function and live patches of the same function do not get in each other's way.
#include <linux/livepatch.h>
#include <linux/module.h>
#include <linux/net.h>

static unsigned long calls;
module_param(calls, ulong, 0444);

static int patched_bind(struct socket *socket, void *address, int length)
{
	WRITE_ONCE(calls, calls + 1);
	return 0;
}

static struct klp_func functions[] = {{.old_name = "security_socket_bind", .new_func = patched_bind}, {}};
static struct klp_object objects[] = {{.funcs = functions}, {}};
static struct klp_patch patch = {.mod = THIS_MODULE, .objs = objects};

static int __init live_patch_init(void)
{
	return klp_enable_patch(&patch);
}

static void __exit live_patch_exit(void)
{
}

module_init(live_patch_init);
module_exit(live_patch_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("A live patch for Lararium's test guests");
MODULE_INFO(livepatch, "Y");
