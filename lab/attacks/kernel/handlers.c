// SPDX-License-Identifier: GPL-2.0-only
// An attack simulator for test guests (attack.h): functions that the kernel calls on some occasion. Those of the
// kernel's own tables are replaced by a jump to the function that was there; the others do nothing.
#include "attack.h"

#include <linux/binfmts.h>
#include <linux/delay.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/ftrace.h>
#include <linux/hrtimer.h>
#include <linux/input.h>
#include <linux/jiffies.h>
#include <linux/kprobes.h>
#include <linux/kthread.h>
#include <linux/netdevice.h>
#include <linux/netfilter.h>
#include <linux/netfilter_ipv4.h>
#include <linux/notifier.h>
#include <linux/proc_fs.h>
#include <linux/reboot.h>
#include <linux/seq_file.h>
#include <linux/skbuff.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/timer.h>
#include <linux/tracepoint.h>
#include <linux/tty.h>
#include <linux/tty_ldisc.h>
#include <linux/workqueue.h>
#include <net/net_namespace.h>
#include <net/sock.h>

// Each callback gives what its caller takes for "go on".
static notrace void do_nothing(void)
{
}

static notrace int return_zero(void)
{
	return 0;
}

static unsigned int accept_packet(void)
{
	return NF_ACCEPT;
}

static int drop_copy(struct sk_buff *packet, struct net_device *device, struct packet_type *type,
		     struct net_device *original)
{
	kfree_skb(packet);
	return 0;
}

static int not_supported(void)
{
	return -ENOEXEC;
}

static ssize_t read_nothing(struct file *file, char __user *buffer, size_t size, loff_t *position)
{
	return 0;
}

static int wait_to_stop(void *unused)
{
	while (!kthread_should_stop())
		msleep(10);
	return 0;
}

#define CODE(argument, function) attack_code(argument, (void *)(function))

static struct ftrace_ops tracer;

static void free_filter(void)
{
	void (*function)(struct ftrace_ops *) = attack_symbol("ftrace_free_filter"); // exported since 6.3
	if (function)
		function(&tracer);
}

static int ftrace_on(const char *argument)
{
	char name[] = "vfs_statfs";
	int result;
	memset(&tracer, 0, sizeof(tracer));
	tracer.func = CODE(argument, do_nothing);
	if (!tracer.func)
		return -ENOMEM;
	result = ftrace_set_filter(&tracer, name, strlen(name), 1);
	if (!result)
		result = register_ftrace_function(&tracer);
	if (result)
		free_filter();
	return result;
}

static void ftrace_off(void)
{
	unregister_ftrace_function(&tracer);
	free_filter();
}

static struct kprobe probe;

static int kprobe_on(const char *argument)
{
	memset(&probe, 0, sizeof(probe));
	probe.symbol_name = "vfs_statfs";
	probe.pre_handler = CODE(argument, return_zero);
	return probe.pre_handler ? register_kprobe(&probe) : -ENOMEM;
}

static void kprobe_off(void)
{
	unregister_kprobe(&probe);
}

static struct kretprobe return_probe;

static int kretprobe_on(const char *argument)
{
	memset(&return_probe, 0, sizeof(return_probe));
	return_probe.kp.symbol_name = "vfs_statfs";
	return_probe.handler = CODE(argument, return_zero);
	return return_probe.handler ? register_kretprobe(&return_probe) : -ENOMEM;
}

static void kretprobe_off(void)
{
	unregister_kretprobe(&return_probe);
}

static struct tracepoint *traced;
static void *trace_probe;

static int tracepoint_on(const char *argument)
{
	traced = attack_symbol("__tracepoint_sched_process_exec");
	if (!traced)
		return -EOPNOTSUPP;
	trace_probe = CODE(argument, do_nothing);
	return trace_probe ? tracepoint_probe_register(traced, trace_probe, NULL) : -ENOMEM;
}

static void tracepoint_off(void)
{
	tracepoint_probe_unregister(traced, trace_probe, NULL);
	tracepoint_synchronize_unregister();
}

static struct notifier_block keyboard, reboot;

static int keyboard_on(const char *argument)
{
	int (*function)(struct notifier_block *) = attack_symbol("register_keyboard_notifier");
	if (!function)
		return -EOPNOTSUPP;
	memset(&keyboard, 0, sizeof(keyboard));
	keyboard.notifier_call = CODE(argument, return_zero);
	return keyboard.notifier_call ? function(&keyboard) : -ENOMEM;
}

static void keyboard_off(void)
{
	int (*function)(struct notifier_block *) = attack_symbol("unregister_keyboard_notifier");
	function(&keyboard);
}

static int reboot_on(const char *argument)
{
	memset(&reboot, 0, sizeof(reboot));
	reboot.notifier_call = CODE(argument, return_zero);
	return reboot.notifier_call ? register_reboot_notifier(&reboot) : -ENOMEM;
}

static void reboot_off(void)
{
	unregister_reboot_notifier(&reboot);
}

// A keylogger's other way: it asks for the keys of every input device, and here connects to none.
static struct input_handler input;
static const struct input_device_id any_keyboard[] = {
	{.flags = INPUT_DEVICE_ID_MATCH_EVBIT, .evbit = {BIT_MASK(EV_KEY)}},
	{},
};

static int input_on(const char *argument)
{
	int (*function)(struct input_handler *) = attack_symbol("input_register_handler");
	if (!function)
		return -EOPNOTSUPP;
	memset(&input, 0, sizeof(input));
	input.name = "lararium_attack";
	input.id_table = any_keyboard;
	input.connect = CODE(argument, not_supported);
	input.event = CODE(argument, do_nothing);
	return input.connect && input.event ? function(&input) : -ENOMEM;
}

static void input_off(void)
{
	void (*function)(struct input_handler *) = attack_symbol("input_unregister_handler");
	function(&input);
}

static struct timer_list timer;

static int timer_on(const char *argument)
{
	void *function = CODE(argument, do_nothing);
	if (!function)
		return -ENOMEM;
	timer_setup(&timer, function, 0);
	mod_timer(&timer, jiffies + 3600 * HZ);
	return 0;
}

static void timer_off(void)
{
	timer_delete_sync(&timer);
}

static struct delayed_work work;

static int work_on(const char *argument)
{
	void *function = CODE(argument, do_nothing);
	if (!function)
		return -ENOMEM;
	INIT_DELAYED_WORK(&work, function);
	schedule_delayed_work(&work, 3600 * HZ);
	return 0;
}

static void work_off(void)
{
	cancel_delayed_work_sync(&work);
}

// One work at a time: the second waits until the first, which runs as long as the attack, is done.
static struct workqueue_struct *work_queue;
static struct work_struct running_work, waiting_work;
static bool work_goes_on;

static void run_on(struct work_struct *unused)
{
	while (READ_ONCE(work_goes_on))
		msleep(10);
}

static int queue_work_items(void *running, void *waiting)
{
	if (!running || !waiting)
		return -ENOMEM;
	work_queue = alloc_workqueue("lab_queue", WQ_UNBOUND, 1);
	if (!work_queue)
		return -ENOMEM;
	work_goes_on = true;
	INIT_WORK(&running_work, running);
	INIT_WORK(&waiting_work, waiting);
	queue_work(work_queue, &running_work);
	queue_work(work_queue, &waiting_work);
	return 0;
}

static int running_work_on(const char *argument)
{
	return queue_work_items(CODE(argument, run_on), do_nothing);
}

static int waiting_work_on(const char *argument)
{
	return queue_work_items(run_on, CODE(argument, do_nothing));
}

static void queued_work_off(void)
{
	WRITE_ONCE(work_goes_on, false);
	destroy_workqueue(work_queue);
}

// A timer of high resolution.
static struct hrtimer precise_timer;

static int return_no_restart(void)
{
	return HRTIMER_NORESTART;
}

static int precise_timer_on(const char *argument)
{
	enum hrtimer_restart (*function)(struct hrtimer *) = CODE(argument, return_no_restart);
	if (!function)
		return -ENOMEM;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 13, 0)
	hrtimer_setup(&precise_timer, function, CLOCK_MONOTONIC, HRTIMER_MODE_REL);
#else
	hrtimer_init(&precise_timer, CLOCK_MONOTONIC, HRTIMER_MODE_REL);
	precise_timer.function = function;
#endif
	hrtimer_start(&precise_timer, ktime_set(3600, 0), HRTIMER_MODE_REL);
	return 0;
}

static void precise_timer_off(void)
{
	hrtimer_cancel(&precise_timer);
}

static struct nf_hook_ops hook;

static int netfilter_on(const char *argument)
{
	memset(&hook, 0, sizeof(hook));
	hook.hook = CODE(argument, accept_packet);
	hook.pf = NFPROTO_IPV4;
	hook.hooknum = NF_INET_PRE_ROUTING;
	hook.priority = NF_IP_PRI_FIRST;
	return hook.hook ? nf_register_net_hook(&init_net, &hook) : -ENOMEM;
}

static void netfilter_off(void)
{
	nf_unregister_net_hook(&init_net, &hook);
}

static struct packet_type one_type, all_types;

static int add_packet_type(struct packet_type *type, int protocol, const char *argument)
{
	memset(type, 0, sizeof(*type));
	type->type = htons(protocol);
	type->af_packet_net = &init_net; // since 6.15 the list of handlers of all protocols is a namespace's
	type->func = CODE(argument, drop_copy);
	if (!type->func)
		return -ENOMEM;
	dev_add_pack(type);
	return 0;
}

static int one_type_on(const char *argument)
{
	return add_packet_type(&one_type, 0x88b5, argument); // for local experiments: no such frame comes
}

static void one_type_off(void)
{
	dev_remove_pack(&one_type);
}

static int all_types_on(const char *argument)
{
	return add_packet_type(&all_types, ETH_P_ALL, argument);
}

static void all_types_off(void)
{
	dev_remove_pack(&all_types);
}

// A file in /proc whose operations lead into the code.
static struct proc_ops file_operations;
static struct proc_dir_entry *proc_file;

static int proc_file_on(const char *argument)
{
	memset(&file_operations, 0, sizeof(file_operations));
	file_operations.proc_read = CODE(argument, read_nothing);
	if (!file_operations.proc_read)
		return -ENOMEM;
	proc_file = proc_create("lararium_attack_file", 0400, NULL, &file_operations);
	return proc_file ? 0 : -ENOMEM;
}

static void proc_file_off(void)
{
	proc_remove(proc_file);
}

// A member of a table of the kernel's, read-only or not.
static int replace_function(struct patch *patch, void *member, const char *argument)
{
	void *old = member ? *(void **)member : NULL, *code;
	if (!old)
		return -EOPNOTSUPP;
	code = attack_code(argument, old);
	return code ? patch_apply(patch, member, &code, sizeof(code)) : -ENOMEM;
}

static struct patch proc_table, proc_root, seq_table, udp_seq_table, protocol_table, discipline, folder_table, inode_table;

static int proc_table_on(const char *argument)
{
	struct proc_ops *table = attack_symbol("stat_proc_ops"); // of /proc/stat
	return table ? replace_function(&proc_table, &table->proc_open, argument) : -EOPNOTSUPP;
}

static void proc_table_off(void)
{
	patch_revert(&proc_table);
}

static int proc_root_on(const char *argument)
{
	struct file_operations *table = attack_symbol("proc_root_operations");
	return table ? replace_function(&proc_root, &table->iterate_shared, argument) : -EOPNOTSUPP;
}

static void proc_root_off(void)
{
	patch_revert(&proc_root);
}

static int seq_on(const char *argument)
{
	struct seq_operations *table = attack_symbol("tcp4_seq_ops");
	return table ? replace_function(&seq_table, &table->show, argument) : -EOPNOTSUPP;
}

static void seq_off(void)
{
	patch_revert(&seq_table);
}

static int udp_seq_on(const char *argument)
{
	struct seq_operations *table = attack_symbol("udp_seq_ops");
	return table ? replace_function(&udp_seq_table, &table->show, argument) : -EOPNOTSUPP;
}

static void udp_seq_off(void)
{
	patch_revert(&udp_seq_table);
}

static int protocol_on(const char *argument)
{
	struct proto *table = attack_symbol("tcp_prot");
	return table ? replace_function(&protocol_table, &table->recvmsg, argument) : -EOPNOTSUPP;
}

static void protocol_off(void)
{
	patch_revert(&protocol_table);
}

static int discipline_on(const char *argument)
{
	struct tty_ldisc_ops *table = attack_symbol("n_tty_ops");
	return table ? replace_function(&discipline, &table->receive_buf2, argument) : -EOPNOTSUPP;
}

static void discipline_off(void)
{
	patch_revert(&discipline);
}

// The terminal of whoever asks gets a table of its own; the one that it shared stays as it is.
static struct tty_ldisc_ops own_discipline;
static struct tty_ldisc_ops *shared_discipline;
static struct tty_struct *own_terminal;

static int own_discipline_on(const char *argument)
{
	own_terminal = get_current_tty();
	if (!own_terminal)
		return -EOPNOTSUPP;
	shared_discipline = own_terminal->ldisc->ops;
	own_discipline = *shared_discipline;
	own_discipline.write_wakeup = CODE(argument, do_nothing);
	if (!own_discipline.write_wakeup) {
		tty_kref_put(own_terminal);
		return -ENOMEM;
	}
	own_terminal->ldisc->ops = &own_discipline;
	return 0;
}

static void own_discipline_off(void)
{
	own_terminal->ldisc->ops = shared_discipline;
	tty_kref_put(own_terminal);
}

// The table that the root file system's folders share.
static int folder_table_on(const char *argument)
{
	struct file *folder = filp_open("/", O_RDONLY | O_DIRECTORY, 0);
	int result;
	if (IS_ERR(folder))
		return PTR_ERR(folder);
	result = replace_function(&folder_table, (void *)&folder->f_op->iterate_shared, argument);
	fput(folder);
	return result;
}

static void folder_table_off(void)
{
	patch_revert(&folder_table);
}

static int inode_table_on(const char *argument)
{
	struct file *folder = filp_open("/", O_RDONLY | O_DIRECTORY, 0);
	int result;
	if (IS_ERR(folder))
		return PTR_ERR(folder);
	result = replace_function(&inode_table, (void *)&file_inode(folder)->i_op->lookup, argument);
	fput(folder);
	return result;
}

static void inode_table_off(void)
{
	patch_revert(&inode_table);
}

// One folder gets a table of its own; the one that it shared stays as it is.
static struct file_operations own_table;
static struct file_operations *allocated_table;
static const struct file_operations *shared_table;
static struct file *own_folder;

static int replace_table(struct file_operations *table, const char *argument)
{
	own_folder = filp_open("/etc", O_RDONLY | O_DIRECTORY, 0);
	if (IS_ERR(own_folder))
		return PTR_ERR(own_folder);
	shared_table = file_inode(own_folder)->i_fop;
	*table = *shared_table;
	table->iterate_shared = CODE(argument, table->iterate_shared);
	if (!table->iterate_shared) {
		fput(own_folder);
		return -ENOMEM;
	}
	file_inode(own_folder)->i_fop = table;
	return 0;
}

static int own_table_on(const char *argument)
{
	return replace_table(&own_table, argument);
}

static void own_table_off(void)
{
	file_inode(own_folder)->i_fop = shared_table;
	fput(own_folder);
}

static int allocated_table_on(const char *argument)
{
	int result;
	allocated_table = kmalloc(sizeof(*allocated_table), GFP_KERNEL);
	result = allocated_table ? replace_table(allocated_table, argument) : -ENOMEM;
	if (result)
		kfree(allocated_table);
	return result;
}

static void allocated_table_off(void)
{
	own_table_off();
	synchronize_rcu();
	kfree(allocated_table);
}

// The same for one file that whoever asks has open from then on, and for no other.
static struct file *own_file;

static int own_file_on(const char *argument)
{
	int descriptor;
	own_file = filp_open("/etc/passwd", O_RDONLY, 0);
	if (IS_ERR(own_file))
		return PTR_ERR(own_file);
	descriptor = get_unused_fd_flags(0);
	shared_table = own_file->f_op;
	own_table = *shared_table;
	own_table.llseek = CODE(argument, own_table.llseek);
	if (descriptor < 0 || !own_table.llseek) {
		fput(own_file);
		return -ENOMEM;
	}
	own_file->f_op = &own_table;
	fd_install(descriptor, get_file(own_file));
	return 0;
}

static void own_file_off(void)
{
	own_file->f_op = shared_table;
	fput(own_file);
}

// The entry of /proc/stat gets a table of its own. What is private to the kernel is searched for: its inode stands in
// a structure that leads to the entry, and that to the table.
static struct proc_ops own_entry_table;
static struct proc_ops *shared_entry_table, **entry_slot;

static struct proc_ops **find_entry_slot(struct inode *inode, const struct proc_ops *table)
{
	void **before = (void **)inode;
	for (int i = 1; i <= 16; i++) {
		void **object = before[-i];
		if (!virt_addr_valid(object) || (unsigned long)object % sizeof(void *))
			continue;
		for (int member = 0; member < 16; member++)
			if (object[member] == table)
				return (struct proc_ops **)&object[member];
	}
	return NULL;
}

static int own_entry_on(const char *argument)
{
	struct file *file;
	shared_entry_table = attack_symbol("stat_proc_ops");
	if (!shared_entry_table)
		return -EOPNOTSUPP;
	file = filp_open("/proc/stat", O_RDONLY, 0);
	if (IS_ERR(file))
		return PTR_ERR(file);
	entry_slot = find_entry_slot(file_inode(file), shared_entry_table);
	fput(file);
	if (!entry_slot)
		return -EOPNOTSUPP;
	own_entry_table = *shared_entry_table;
	own_entry_table.proc_lseek = CODE(argument, own_entry_table.proc_lseek);
	if (!own_entry_table.proc_lseek)
		return -ENOMEM;
	*entry_slot = &own_entry_table;
	return 0;
}

static void own_entry_off(void)
{
	*entry_slot = shared_entry_table;
}

static struct linux_binfmt format;

static int format_on(const char *argument)
{
	memset(&format, 0, sizeof(format));
	format.module = THIS_MODULE;
	format.load_binary = CODE(argument, not_supported);
	if (!format.load_binary)
		return -ENOMEM;
	register_binfmt(&format);
	return 0;
}

static void format_off(void)
{
	unregister_binfmt(&format);
}

static struct task_struct *thread;

static int thread_on(const char *argument)
{
	int (*function)(void *) = CODE(argument, wait_to_stop);
	if (!function)
		return -ENOMEM;
	thread = kthread_run(function, NULL, "lab_thread");
	return PTR_ERR_OR_ZERO(thread);
}

static void thread_off(void)
{
	kthread_stop(thread);
}

struct attack attack_handlers[] = {
	{"ftrace", ftrace_on, ftrace_off},
	{"kprobe", kprobe_on, kprobe_off},
	{"kretprobe", kretprobe_on, kretprobe_off},
	{"tracepoint", tracepoint_on, tracepoint_off},
	{"keyboard_notifier", keyboard_on, keyboard_off},
	{"reboot_notifier", reboot_on, reboot_off},
	{"input_handler", input_on, input_off},
	{"timer", timer_on, timer_off},
	{"hrtimer", precise_timer_on, precise_timer_off},
	{"work", work_on, work_off},
	{"work_running", running_work_on, queued_work_off},
	{"work_waiting", waiting_work_on, queued_work_off},
	{"netfilter_hook", netfilter_on, netfilter_off},
	{"packet_type", one_type_on, one_type_off},
	{"packet_type_all", all_types_on, all_types_off},
	{"proc_file", proc_file_on, proc_file_off},
	{"proc_operations", proc_table_on, proc_table_off},
	{"proc_root_iterate", proc_root_on, proc_root_off},
	{"seq_operations", seq_on, seq_off},
	{"seq_operations_udp", udp_seq_on, udp_seq_off},
	{"socket_protocol", protocol_on, protocol_off},
	{"line_discipline", discipline_on, discipline_off},
	{"own_line_discipline", own_discipline_on, own_discipline_off},
	{"folder_operations", folder_table_on, folder_table_off},
	{"inode_operations", inode_table_on, inode_table_off},
	{"own_operations", own_table_on, own_table_off},
	{"own_operations_allocated", allocated_table_on, allocated_table_off},
	{"own_operations_of_open_file", own_file_on, own_file_off},
	{"own_operations_of_proc_entry", own_entry_on, own_entry_off},
	{"binary_format", format_on, format_off},
	{"kernel_thread", thread_on, thread_off},
	{},
};
