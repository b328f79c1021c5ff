#include "global_types.h"

#include <array>

namespace lararium::isf {
namespace {

using enum GlobalType::Shape;

constexpr auto table = std::to_array<GlobalType>({
    // tasks and what hangs off them
    {"init_task", "task_struct"},
    {"init_mm", "mm_struct"},
    {"init_files", "files_struct"},
    {"init_fs", "fs_struct"},
    {"init_cred", "cred"},
    {"init_signals", "signal_struct"},
    {"init_sighand", "sighand_struct"},
    {"init_struct_pid", "pid"},
    {"init_nsproxy", "nsproxy"},
    {"init_pid_ns", "pid_namespace"},
    {"init_user_ns", "user_namespace"},
    {"init_uts_ns", "uts_namespace"},
    {"init_ipc_ns", "ipc_namespace"},
    {"init_time_ns", "time_namespace"},
    {"init_cgroup_ns", "cgroup_namespace"},
    {"init_css_set", "css_set"},
    {"cgrp_dfl_root", "cgroup_root"},
    {"root_task_group", "task_group"},
    {"pid_hash", "hlist_head", pointer}, // before 4.15
    {"pidhash_shift", "unsigned int"},
    {"fair_sched_class", "sched_class"},
    {"rt_sched_class", "sched_class"},
    {"dl_sched_class", "sched_class"},
    {"idle_sched_class", "sched_class"},
    {"stop_sched_class", "sched_class"},
    {"cap_last_cap", "int"},
    // modules, sysfs, tracing
    {"modules", "list_head"},
    {"module_kset", "kset", pointer},
    {"ftrace_ops_list", "ftrace_ops", pointer},
    {"prog_idr", "idr"},
    {"map_idr", "idr"},
    {"link_idr", "idr"},
    {"btf_idr", "idr"},
    // interrupts and system calls
    {"idt_table", "gate_struct", array, 256},
    {"sys_call_table", "void", array_of_pointers, 0},
    {"ia32_sys_call_table", "void", array_of_pointers, 0},
    {"boot_cpu_data", "cpuinfo_x86"},
    {"__per_cpu_offset", "long unsigned int", array, 0},
    {"nr_cpu_ids", "unsigned int"},
    {"__cpu_online_mask", "cpumask"},
    {"__cpu_possible_mask", "cpumask"},
    {"jiffies_64", "long unsigned int"},
    // memory
    {"phys_base", "long unsigned int"},
    {"page_offset_base", "long unsigned int"},
    {"vmalloc_base", "long unsigned int"},
    {"vmemmap_base", "long unsigned int"},
    {"mem_map", "page", pointer},
    {"mem_section", "mem_section", pointer_to_pointer},
    {"node_data", "pglist_data", array_of_pointers, 0},
    {"init_top_pgt", "long unsigned int", array, 512},
    {"init_level4_pgt", "long unsigned int", array, 512},
    {"swapper_pg_dir", "long unsigned int", array, 512},
    {"iomem_resource", "resource"},
    {"ioport_resource", "resource"},
    {"slab_caches", "list_head"},
    {"vmap_area_list", "list_head"},
    {"height_to_maxindex", "long unsigned int", array, 0}, // before 4.20
    // the kernel's log
    {"prb", "printk_ringbuffer", pointer},
    {"log_buf", "char", pointer},
    {"log_buf_len", "unsigned int"},
    {"log_end", "unsigned int"},
    {"log_first_idx", "unsigned int"},
    {"log_next_idx", "unsigned int"},
    // files
    {"super_blocks", "list_head"},
    {"file_systems", "file_system_type", pointer},
    {"dentry_hashtable", "hlist_bl_head", pointer},
    {"inode_hashtable", "hlist_head", pointer},
    {"chrdevs", "char_device_struct", array_of_pointers, 255},
    {"cdev_map", "kobj_map", pointer},
    {"tty_drivers", "list_head"},
    {"keyboard_notifier_list", "atomic_notifier_head"},
    {"num_registered_fb", "int"},
    {"registered_fb", "fb_info", array_of_pointers, 32},
    // network
    {"init_net", "net"},
    {"net_namespace_list", "list_head"},
    {"socket_file_ops", "file_operations"},
    {"sockfs_dentry_operations", "dentry_operations"},
    {"tcp_hashinfo", "inet_hashinfo"},
    {"udp_table", "udp_table"},
    {"tcp4_seq_afinfo", "tcp_seq_afinfo"},
    {"tcp6_seq_afinfo", "tcp_seq_afinfo"},
    {"udp4_seq_afinfo", "udp_seq_afinfo"},
    {"udp6_seq_afinfo", "udp_seq_afinfo"},
    {"udplite4_seq_afinfo", "udp_seq_afinfo"},
    {"udplite6_seq_afinfo", "udp_seq_afinfo"},
    {"tcp4_seq_ops", "seq_operations"},
    {"tcp6_seq_ops", "seq_operations"},
    {"udp_seq_ops", "seq_operations"},
    {"udp6_seq_ops", "seq_operations"},
    {"raw_v4_hashinfo", "raw_hashinfo"},
    {"ptype_all", "list_head"},
    {"ptype_base", "list_head", array, 16},
    {"security_hook_heads", "security_hook_heads"}, // before 6.12
});

} // namespace

std::span<const GlobalType> global_types() { return table; }

} // namespace lararium::isf
