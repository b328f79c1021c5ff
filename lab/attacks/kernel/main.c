// SPDX-License-Identifier: GPL-2.0-only
// An attack simulator for test guests (attack.h): the control file. Reading /proc/lararium_attack lists the techniques,
// `on NAME [ARGUMENT]` and `off NAME` written to it switch them.
#include "attack.h"

#include <linux/delay.h>
#include <linux/mutex.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/string.h>
#include <linux/uaccess.h>

static unsigned long lookup;
module_param(lookup, ulong, 0400);
MODULE_PARM_DESC(lookup, "address of kallsyms_lookup_name, as /proc/kallsyms says");

static struct attack *const themes[] = {attack_system_calls, attack_text,     attack_modules,    attack_processes,
					attack_handlers,     attack_defences, attack_credentials, attack_bpf,
					attack_registers,    attack_gate};
static DEFINE_MUTEX(lock);
static struct proc_dir_entry *control;

void *attack_symbol(const char *name)
{
	unsigned long (*function)(const char *) = (void *)lookup;
	return (void *)function(name);
}

static void switch_off(struct attack *attack)
{
	attack->off();
	attack->active = false;
	// Whoever is still in the code that was in the way gets out of it.
	synchronize_rcu();
	msleep(20);
}

static bool any_active(void)
{
	size_t theme;
	for (theme = 0; theme < ARRAY_SIZE(themes); theme++)
		for (struct attack *attack = themes[theme]; attack->name; attack++)
			if (attack->active)
				return true;
	return false;
}

static int command(char *line)
{
	char *verb = strsep(&line, " "), *name = strsep(&line, " ");
	size_t theme;
	if (!name)
		return -EINVAL;
	for (theme = 0; theme < ARRAY_SIZE(themes); theme++) {
		for (struct attack *attack = themes[theme]; attack->name; attack++) {
			int result = 0;
			if (strcmp(attack->name, name))
				continue;
			if (!strcmp(verb, "on") && !attack->active) {
				result = attack->on(line ? line : "");
				attack->active = result == 0;
			} else if (!strcmp(verb, "off") && attack->active) {
				switch_off(attack);
			} else {
				return -EINVAL;
			}
			if (!any_active())
				attack_code_release();
			return result;
		}
	}
	return -ENOENT;
}

static ssize_t control_write(struct file *file, const char __user *buffer, size_t size, loff_t *position)
{
	char line[128];
	int result;
	if (size >= sizeof(line))
		return -EINVAL;
	if (copy_from_user(line, buffer, size))
		return -EFAULT;
	line[size] = '\0';
	mutex_lock(&lock);
	result = command(strim(line));
	mutex_unlock(&lock);
	return result ? result : size;
}

static int control_show(struct seq_file *out, void *unused)
{
	size_t theme;
	for (theme = 0; theme < ARRAY_SIZE(themes); theme++)
		for (struct attack *attack = themes[theme]; attack->name; attack++)
			seq_printf(out, "%s %s\n", attack->name, attack->active ? "on" : "off");
	return 0;
}

static int control_open(struct inode *inode, struct file *file)
{
	return single_open(file, control_show, NULL);
}

static const struct proc_ops control_operations = {
	.proc_open = control_open,
	.proc_read = seq_read,
	.proc_lseek = seq_lseek,
	.proc_release = single_release,
	.proc_write = control_write,
};

static int __init attack_init(void)
{
	if (!lookup)
		return -EINVAL;
	control = proc_create("lararium_attack", 0600, NULL, &control_operations);
	return control ? 0 : -ENOMEM;
}

static void __exit attack_exit(void)
{
	size_t theme;
	proc_remove(control);
	for (theme = 0; theme < ARRAY_SIZE(themes); theme++)
		for (struct attack *attack = themes[theme]; attack->name; attack++)
			if (attack->active)
				switch_off(attack);
	attack_code_release();
}

module_init(attack_init);
module_exit(attack_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Simulates attacks in Lararium's test guests");
