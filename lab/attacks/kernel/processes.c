// SPDX-License-Identifier: GPL-2.0-only
// An attack simulator for test guests (attack.h): a process, named by its pid, leaves the places where processes are
// looked for. It must be alive when it is put back.
#include "attack.h"

#include <linux/cgroup-defs.h>
#include <linux/idr.h>
#include <linux/pid.h>
#include <linux/pid_namespace.h>
#include <linux/rculist.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/spinlock.h>

static struct task_struct *victim;
static struct pid *victim_pid;

static int choose(const char *argument)
{
	int number;
	if (victim)
		return -EBUSY; // one at a time
	if (kstrtoint(argument, 10, &number))
		return -EINVAL;
	rcu_read_lock();
	victim_pid = get_pid(find_vpid(number));
	victim = victim_pid ? pid_task(victim_pid, PIDTYPE_PID) : NULL;
	if (victim)
		get_task_struct(victim);
	rcu_read_unlock();
	if (!victim)
		put_pid(victim_pid);
	return victim ? 0 : -ESRCH;
}

static void release(void)
{
	put_task_struct(victim);
	put_pid(victim_pid);
	victim = NULL;
}

static int change_list(bool insert)
{
	rwlock_t *lock = attack_symbol("tasklist_lock");
	if (!lock)
		return -EOPNOTSUPP;
	write_lock_irq(lock);
	if (insert) {
		list_add_tail_rcu(&victim->tasks, &init_task.tasks);
	} else {
		list_del_rcu(&victim->tasks);
	}
	write_unlock_irq(lock);
	return 0;
}

static int change_table(bool insert)
{
	spinlock_t *lock = attack_symbol("pidmap_lock");
	struct idr *table = &init_pid_ns.idr;
	const int number = victim_pid->numbers[0].nr;
	int result = 0;
	if (!lock)
		return -EOPNOTSUPP;
	idr_preload(GFP_KERNEL);
	spin_lock_irq(lock);
	if (insert)
		result = idr_alloc(table, victim_pid, number, number + 1, GFP_ATOMIC);
	else
		idr_remove(table, number);
	spin_unlock_irq(lock);
	idr_preload_end();
	return result < 0 ? result : 0;
}

static int change_links(bool insert)
{
	static const enum pid_type types[] = {PIDTYPE_PID, PIDTYPE_TGID};
	rwlock_t *lock = attack_symbol("tasklist_lock");
	size_t index;
	if (!lock)
		return -EOPNOTSUPP;
	write_lock_irq(lock);
	for (index = 0; index < ARRAY_SIZE(types); index++) {
		struct hlist_node *node = &victim->pid_links[types[index]];
		if (insert)
			hlist_add_head_rcu(node, &victim_pid->tasks[types[index]]);
		else
			hlist_del_init_rcu(node);
	}
	write_unlock_irq(lock);
	return 0;
}

static int begin(const char *argument, int (*change)(bool))
{
	int result = choose(argument);
	if (result)
		return result;
	result = change(false);
	if (result)
		release();
	return result;
}

static void end(int (*change)(bool))
{
	if (change(true))
		pr_err("the process could not be put back\n");
	release();
}

static int list_on(const char *argument)
{
	return begin(argument, change_list);
}

static void list_off(void)
{
	end(change_list);
}

static int table_on(const char *argument)
{
	return begin(argument, change_table);
}

static void table_off(void)
{
	end(change_table);
}

static int links_on(const char *argument)
{
	return begin(argument, change_links);
}

static void links_off(void)
{
	end(change_links);
}

// Leaves the list of its process' threads; it is not the first of them.
static int change_threads(bool insert)
{
	rwlock_t *lock = attack_symbol("tasklist_lock");
	if (!lock || thread_group_leader(victim))
		return -EOPNOTSUPP;
	write_lock_irq(lock);
	if (insert)
		list_add_tail_rcu(&victim->thread_node, &victim->signal->thread_head);
	else
		list_del_rcu(&victim->thread_node);
	write_unlock_irq(lock);
	return 0;
}

static int change_groups(bool insert)
{
	spinlock_t *lock = attack_symbol("css_set_lock");
	if (!lock)
		return -EOPNOTSUPP;
	spin_lock_irq(lock);
	if (insert)
		list_add_tail(&victim->cg_list, &victim->cgroups->tasks);
	else
		list_del_init(&victim->cg_list);
	spin_unlock_irq(lock);
	return 0;
}

static int change_both(bool insert)
{
	int result = change_table(insert);
	return result ? result : change_list(insert);
}

static int both_on(const char *argument)
{
	return begin(argument, change_both);
}

static void both_off(void)
{
	end(change_both);
}

// ARGUMENT is the process; its youngest thread hides.
static int thread_on(const char *argument)
{
	int result = choose(argument);
	struct task_struct *thread;
	struct pid *pid;
	if (result)
		return result;
	rcu_read_lock();
	thread = list_last_entry(&victim->signal->thread_head, struct task_struct, thread_node);
	get_task_struct(thread);
	pid = get_pid(task_pid(thread));
	rcu_read_unlock();
	release();
	victim = thread;
	victim_pid = pid;
	result = change_threads(false);
	if (result)
		release();
	return result;
}

static void thread_off(void)
{
	end(change_threads);
}

static int groups_on(const char *argument)
{
	return begin(argument, change_groups);
}

static void groups_off(void)
{
	end(change_groups);
}

// Nothing that lists tasks has it any more. It sleeps, so that no run queue has it either.
static int change_all(bool insert)
{
	int result = change_both(insert);
	return result ? result : change_groups(insert);
}

static int all_on(const char *argument)
{
	return begin(argument, change_all);
}

static void all_off(void)
{
	end(change_all);
}

// Hidden, and to all appearance one that ended, which is lawfully in no list.
static int change_and_die(bool insert)
{
	int result;
	if (insert)
		victim->exit_state = 0;
	result = change_all(insert);
	if (!insert && !result)
		victim->exit_state = EXIT_DEAD;
	return result;
}

static int dead_on(const char *argument)
{
	return begin(argument, change_and_die);
}

static void dead_off(void)
{
	end(change_and_die);
}

struct attack attack_processes[] = {
	{"process_unlisted", list_on, list_off},
	{"process_not_in_pids", table_on, table_off},
	{"process_without_pid_links", links_on, links_off},
	{"process_hidden", both_on, both_off},
	{"process_without_control_groups", groups_on, groups_off},
	{"process_in_no_record", all_on, all_off},
	{"process_feigns_death", dead_on, dead_off},
	{"thread_unlisted", thread_on, thread_off},
	{},
};
