// SPDX-License-Identifier: GPL-2.0-only
// An attack simulator for test guests (attack.h): what a process, named by its pid, is allowed to do is changed without
// the kernel's own ways (prepare_creds, commit_creds).
#include "attack.h"

#include <linux/cred.h>
#include <linux/pid.h>
#include <linux/sched.h>
#include <linux/sched/task.h>

static struct task_struct *victim;
static const struct cred *old_subjective, *old_objective;
static struct cred saved;

static int choose(const char *argument)
{
	int number;
	if (victim)
		return -EBUSY; // one at a time
	if (kstrtoint(argument, 10, &number))
		return -EINVAL;
	rcu_read_lock();
	victim = pid_task(find_vpid(number), PIDTYPE_PID);
	if (victim)
		get_task_struct(victim);
	rcu_read_unlock();
	return victim ? 0 : -ESRCH;
}

static void release(void)
{
	put_task_struct(victim);
	victim = NULL;
}

// The process points to the first process' credentials, which do not count it.
static int share_on(const char *argument)
{
	int result = choose(argument);
	if (result)
		return result;
	old_subjective = rcu_access_pointer(victim->cred);
	old_objective = rcu_access_pointer(victim->real_cred);
	rcu_assign_pointer(victim->cred, rcu_access_pointer(init_task.cred));
	rcu_assign_pointer(victim->real_cred, rcu_access_pointer(init_task.cred));
	return 0;
}

static void share_off(void)
{
	rcu_assign_pointer(victim->cred, old_subjective);
	rcu_assign_pointer(victim->real_cred, old_objective);
	release();
}

static struct cred *own(void)
{
	return (struct cred *)rcu_access_pointer(victim->cred);
}

static int uid_on(const char *argument)
{
	int result = choose(argument);
	if (result)
		return result;
	saved = *own();
	own()->uid = own()->euid = own()->suid = own()->fsuid = GLOBAL_ROOT_UID;
	return 0;
}

static void uid_off(void)
{
	own()->uid = saved.uid;
	own()->euid = saved.euid;
	own()->suid = saved.suid;
	own()->fsuid = saved.fsuid;
	release();
}

static int capabilities_on(const char *argument)
{
	int result = choose(argument);
	if (result)
		return result;
	saved = *own();
	own()->cap_effective = own()->cap_permitted = rcu_access_pointer(init_task.cred)->cap_permitted;
	return 0;
}

static void capabilities_off(void)
{
	own()->cap_effective = saved.cap_effective;
	own()->cap_permitted = saved.cap_permitted;
	release();
}

struct attack attack_credentials[] = {
	{"credentials_shared", share_on, share_off},
	{"credentials_uid", uid_on, uid_off},
	{"credentials_capabilities", capabilities_on, capabilities_off},
	{},
};
