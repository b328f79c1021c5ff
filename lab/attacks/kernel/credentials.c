// SPDX-License-Identifier: GPL-2.0-only
// An attack simulator for test guests (attack.h): what a process, named by its pid, is allowed to do is changed without
// the kernel's own ways (prepare_creds, commit_creds).
#include "attack.h"

#include <linux/cred.h>
#include <linux/pid.h>
#include <linux/sched.h>
#include <linux/sched/task.h>
#include <linux/user_namespace.h>

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

// The real user stays, so that what the kernel counts for each user fits.
static int euid_on(const char *argument)
{
	int result = choose(argument);
	if (result)
		return result;
	saved = *own();
	own()->euid = own()->suid = own()->fsuid = GLOBAL_ROOT_UID;
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

// What `commit_creds(prepare_kernel_cred(...))` gives: whole credentials of their own.
static struct cred *granted;

static int grant_on(const char *argument)
{
	int result = choose(argument);
	if (result)
		return result;
	granted = prepare_kernel_cred(&init_task);
	if (!granted) {
		release();
		return -ENOMEM;
	}
	old_subjective = rcu_access_pointer(victim->cred);
	old_objective = rcu_access_pointer(victim->real_cred);
	get_cred(granted);
	rcu_assign_pointer(victim->cred, granted);
	rcu_assign_pointer(victim->real_cred, granted);
	return 0;
}

static void grant_off(void)
{
	share_off();
	synchronize_rcu();
	put_cred(granted);
	put_cred(granted);
}

// Out of its user namespace, with the capabilities that it had there.
static int namespace_on(const char *argument)
{
	int result = choose(argument);
	if (result)
		return result;
	saved = *own();
	own()->user_ns = &init_user_ns;
	return 0;
}

static void namespace_off(void)
{
	own()->user_ns = saved.user_ns;
	release();
}

struct attack attack_credentials[] = {
	{"credentials_shared", share_on, share_off},
	{"credentials_uid", uid_on, uid_off},
	{"credentials_euid", euid_on, uid_off},
	{"credentials_granted", grant_on, grant_off},
	{"credentials_namespace", namespace_on, namespace_off},
	{"credentials_capabilities", capabilities_on, capabilities_off},
	{},
};
