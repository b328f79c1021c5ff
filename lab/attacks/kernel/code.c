// SPDX-License-Identifier: GPL-2.0-only
// An attack simulator for test guests (attack.h): changing memory that is read-only, and code that belongs to nobody.
#include "attack.h"

#include <asm/nospec-branch.h>
#include <linux/kallsyms.h>
#include <linux/mm.h>
#include <linux/stop_machine.h>
#include <linux/string.h>
#include <linux/vmalloc.h>
#include <asm/sync_core.h>

#define SLOTS 8
#define SLOT_SIZE 16

// jmp *targets[n](%rip): no register changes, so it can stand before any code.
void *lararium_targets[SLOTS];
extern u8 lararium_passthrough[];
asm(".pushsection .text\n"
    ".balign 16\n"
    "lararium_passthrough:\n"
    ".irp n,0,1,2,3,4,5,6,7\n"
    ".balign 16, 0xcc\n"
    ".type lararium_passthrough_\\n, @function\n"
    "lararium_passthrough_\\n:\n" ANNOTATE_RETPOLINE_SAFE "\n"
    "jmp *lararium_targets+8*\\n(%rip)\n"
    "int3\n"
    ".size lararium_passthrough_\\n, . - lararium_passthrough_\\n\n"
    ".endr\n"
    ".popsection\n");
static unsigned int used_slots;

static u8 *orphan;
static unsigned int orphan_slots;

static struct page *page_of(const void *address)
{
	unsigned long at = (unsigned long)address;
	if (at >= __START_KERNEL_map && at < MODULES_VADDR)
		return pfn_to_page((at - __START_KERNEL_map + phys_base) >> PAGE_SHIFT);
	if (is_vmalloc_addr(address) || (at >= MODULES_VADDR && at < MODULES_END))
		return vmalloc_to_page(address);
	return virt_to_page(address);
}

struct change {
	void *to;
	const void *from;
	size_t length;
};

static int change_memory(void *data)
{
	const struct change *change = data;
	memcpy(change->to, change->from, change->length);
	sync_core();
	return 0;
}

static int write_anywhere(void *at, const void *bytes, size_t length)
{
	const size_t offset = offset_in_page(at);
	struct page *pages[2] = {page_of(at), page_of(at + length - 1)};
	struct change change = {.from = bytes, .length = length};
	void *alias = vmap(pages, offset + length > PAGE_SIZE ? 2 : 1, VM_MAP, PAGE_KERNEL);
	if (!alias)
		return -ENOMEM;
	change.to = alias + offset;
	// Every CPU passes an interrupt's end before it runs the new code.
	stop_machine(change_memory, &change, NULL);
	vunmap(alias);
	return 0;
}

int patch_apply(struct patch *patch, void *at, const void *bytes, size_t length)
{
	int result;
	if (!at || length > sizeof(patch->old) || patch->at)
		return -EINVAL;
	memcpy(patch->old, at, length);
	result = write_anywhere(at, bytes, length);
	if (!result) {
		patch->at = at;
		patch->length = length;
	}
	return result;
}

void patch_revert(struct patch *patch)
{
	if (patch->at)
		write_anywhere(patch->at, patch->old, patch->length);
	patch->at = NULL;
}

int patch_branch(struct patch *patch, u8 *at, u8 opcode, const void *target)
{
	u8 code[5] = {opcode ? opcode : at[0]};
	const long distance = (long)target - (long)(at + 5);
	if (!target || distance != (s32)distance)
		return -ERANGE;
	*(s32 *)(code + 1) = distance;
	return patch_apply(patch, at, code, sizeof(code));
}

void *branch_target(const u8 *at)
{
	return (void *)at + 5 + *(const s32 *)(at + 1);
}

static bool is_function(const void *address)
{
	int (*find)(unsigned long, unsigned long *, unsigned long *) = attack_symbol("kallsyms_lookup_size_offset");
	unsigned long size, offset;
	return find && address >= attack_symbol("_stext") && address < attack_symbol("_etext") &&
	       find((unsigned long)address, &size, &offset) && offset == 0;
}

u8 *find_branch(u8 *begin, size_t size, const void *target)
{
	if (begin && size > 5)
		for (u8 *at = begin; at <= begin + size - 5; at++)
			if (*at == 0xe8 || (*at == 0xe9 && target))
				if (target ? branch_target(at) == target : is_function(branch_target(at)))
					return at;
	return NULL;
}

size_t symbol_size(const void *begin)
{
	int (*find)(unsigned long, unsigned long *, unsigned long *) = attack_symbol("kallsyms_lookup_size_offset");
	unsigned long size, offset;
	return begin && find && find((unsigned long)begin, &size, &offset) && offset == 0 ? size : 0;
}

// Module space, so that the kernel's own calls reach it.
static u8 *orphan_page(void)
{
	void *(*allocate)(unsigned long, unsigned long, unsigned long, unsigned long, gfp_t, pgprot_t, unsigned long,
			  int, const void *) = attack_symbol("__vmalloc_node_range_noprof");
	int (*read_only)(unsigned long, int) = attack_symbol("set_memory_ro");
	int (*executable)(unsigned long, int) = attack_symbol("set_memory_x");
	u8 *page;
	if (!allocate)
		allocate = attack_symbol("__vmalloc_node_range");
	if (!allocate || !read_only || !executable)
		return NULL;
	page = allocate(PAGE_SIZE, PAGE_SIZE, MODULES_VADDR, MODULES_END, GFP_KERNEL, PAGE_KERNEL, 0, NUMA_NO_NODE,
			__builtin_return_address(0));
	if (!page)
		return NULL;
	memset(page, 0xcc, PAGE_SIZE);
	read_only((unsigned long)page, 1);
	executable((unsigned long)page, 1);
	return page;
}

void *attack_code(const char *argument, void *function)
{
	// jmp *0(%rip), followed by the address
	u8 code[14] = {0xff, 0x25};
	u8 *at;
	if (!function)
		return NULL;
	if (!strcmp(argument, "module")) {
		if (within_module((unsigned long)function, THIS_MODULE))
			return function;
		if (used_slots == SLOTS)
			return NULL;
		lararium_targets[used_slots] = function;
		return lararium_passthrough + SLOT_SIZE * used_slots++;
	}
	if (!orphan)
		orphan = orphan_page();
	if (!orphan || orphan_slots == PAGE_SIZE / SLOT_SIZE)
		return NULL;
	at = orphan + SLOT_SIZE * orphan_slots;
	memcpy(code + 6, &function, 8);
	if (write_anywhere(at, code, sizeof(code)))
		return NULL;
	orphan_slots++;
	return at;
}

void attack_code_release(void)
{
	int (*not_executable)(unsigned long, int) = attack_symbol("set_memory_nx");
	int (*writable)(unsigned long, int) = attack_symbol("set_memory_rw");
	used_slots = orphan_slots = 0;
	if (orphan) {
		not_executable((unsigned long)orphan, 1);
		writable((unsigned long)orphan, 1);
		vfree(orphan);
	}
	orphan = NULL;
}
