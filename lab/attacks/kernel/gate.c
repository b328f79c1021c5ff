// SPDX-License-Identifier: GPL-2.0-only
// An attack simulator for test guests (attack.h): code in the kernel that turns on the hooks that a monitor put into it. It
// exists only to test that this is seen and put back.
#include "attack.h"

#include <linux/gfp.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/smp.h>
#include <asm/io.h>
#include <asm/pgtable.h>

#include "trampoline_layout.h" // of src/gate

static const int windows[] = {508, 509, 510, 504};
static u8 *area;       // where the kernel has it
static u64 *directory; // the page table entry that leads to it

// In the direct map it can be written to.
static u8 *writable(size_t offset)
{
	return (u8 *)__va(((unsigned long)area & (PMD_SIZE - 1)) + offset);
}

static int find_area(void)
{
	u64 *table = attack_symbol("level2_fixmap_pgt");
	size_t i, page;
	unsigned int level;
	if (!table)
		return -ENOENT;
	for (i = 0; i < ARRAY_SIZE(windows); i++) {
		u8 *window = (u8 *)0xffffffffc0000000UL + (size_t)windows[i] * PMD_SIZE;
		if (!table[windows[i]])
			continue;
		for (page = 1; page < 256; page++) {
			pte_t *pte = lookup_address((unsigned long)window + page * PAGE_SIZE, &level);
			if (pte && pte_present(*pte) && level == PG_LEVEL_4K) {
				area = window + page * PAGE_SIZE;
				directory = &table[windows[i]];
				return 0;
			}
		}
	}
	return -ESRCH;
}

struct site {
	u64 address, physical;
	s32 original, patched;
	u32 stub, reserved;
};

// The call is what it was before it was hooked.
static struct patch call;
static int call_on(const char *argument)
{
	struct site *site;
	int result = find_area();
	if (result)
		return result;
	site = (struct site *)(area + GATE_SITES);
	return patch_apply(&call, (u8 *)site->address + 1, &site->original, sizeof(site->original));
}
static void call_off(void)
{
	call.length = 0; // it was put back by others
}

// The trampoline returns at once, so that every call goes on.
static int code_on(const char *argument)
{
	int result = find_area();
	if (result)
		return result;
	WRITE_ONCE(*writable(0), 0xc3);
	return 0;
}
static void nothing_off(void)
{
}

// The configuration says that nobody is interested.
static int board_on(const char *argument)
{
	int result = find_area();
	if (result)
		return result;
	WRITE_ONCE(*writable(GATE_BOARD + BOARD_ON), 0);
	return 0;
}

// An answer that the monitor did not give.
static int answer_on(const char *argument)
{
	int result = find_area();
	if (result)
		return result;
	WRITE_ONCE(*(u64 *)writable(GATE_CPUS + CPU_ANSWER), 0x100000000ULL);
	return 0;
}

// The code's page is another one, in which the trampoline returns at once.
static struct page *copy;
static int table_on(const char *argument)
{
	unsigned int level;
	pte_t *pte;
	int result = find_area();
	if (result)
		return result;
	pte = lookup_address((unsigned long)area, &level);
	copy = alloc_page(GFP_KERNEL);
	if (!pte || !copy)
		return -ENOMEM;
	memcpy(page_address(copy), area, PAGE_SIZE);
	*(u8 *)page_address(copy) = 0xc3;
	WRITE_ONCE(*(u64 *)pte, (READ_ONCE(*(u64 *)pte) & ~PTE_PFN_MASK) | page_to_phys(copy));
	return 0;
}
static void table_off(void)
{
	if (copy)
		__free_page(copy);
	copy = NULL;
}

// The mapping is gone. Only with hooks that nothing calls: whoever does would meet no memory.
static int entry_on(const char *argument)
{
	int result = find_area();
	if (result)
		return result;
	WRITE_ONCE(*directory, 0);
	return 0;
}

// An event that no hooked call made, and its bell.
static int slot_on(const char *argument)
{
	u8 *cpu, *slot, *bell;
	u64 number;
	unsigned long flags;
	int result = find_area();
	if (result)
		return result;
	local_irq_save(flags);
	cpu = area + GATE_CPUS + smp_processor_id() * GATE_CPU_SIZE;
	slot = (u8 *)*(u64 *)(cpu + CPU_SLOT);
	number = (*(u64 *)(cpu + CPU_ANSWER) >> 8) + 1;
	bell = (u8 *)(*(u64 *)(cpu + CPU_BELL) + ((number << 12) & *(u64 *)(cpu + CPU_BELL_MASK)));
	*(u64 *)(slot + SLOT_STACK) = (u64)&flags;
	*(u64 *)(slot + SLOT_CALLER) = (u64)slot_on;
	*(u32 *)(slot + SLOT_STUB) = 0;
	WRITE_ONCE(*(u64 *)(slot + SLOT_NUMBER), number);
	WRITE_ONCE(*(u64 *)bell, number);
	local_irq_restore(flags);
	return 0;
}

// Each CPU's slot says that it waited in vain: it asks nobody any more.
static int abandon_on(const char *argument)
{
	unsigned int cpu;
	int result = find_area();
	if (result)
		return result;
	for (cpu = 0; cpu < *(u32 *)(area + GATE_BOARD + BOARD_CPU_COUNT); cpu++) {
		u8 *slot = (u8 *)*(u64 *)(area + GATE_CPUS + cpu * GATE_CPU_SIZE + CPU_SLOT);
		WRITE_ONCE(*(u32 *)(slot + SLOT_ABANDONED), *(u32 *)(area + GATE_BOARD + BOARD_GENERATION));
	}
	return 0;
}

// Writes to the configuration again and again, and to a bell, until it is switched off.
static struct task_struct *storm;
static int storm_main(void *unused)
{
	while (!kthread_should_stop()) {
		u64 bell = *(u64 *)(area + GATE_CPUS + CPU_BELL);
		WRITE_ONCE(*writable(GATE_BOARD + BOARD_ON), 0);
		WRITE_ONCE(*(u64 *)bell, 0);
		cond_resched();
	}
	return 0;
}
static int storm_on(const char *argument)
{
	int result = find_area();
	if (result)
		return result;
	storm = kthread_run(storm_main, NULL, "gate_storm");
	return PTR_ERR_OR_ZERO(storm);
}
static void storm_off(void)
{
	kthread_stop(storm);
}

// ---- what SIM has in the guest (src/gate/sim/layout.h)

#define CONFIG_RING_SIZE 44
#define RULES_PAGE 0x2000
#define STATE_HEAD 0
#define STATE_KEY 16
#define RECORD_LIMIT 1024
#define RECORD_SIZE_AT 0
#define RECORD_PID_AT 96

static u8 *anywhere(u64 address)
{
	return (u8 *)__va(address & (PMD_SIZE - 1)); // where its pages lie is where they are mapped
}

// A CPU's ring with a record in it that nobody has read yet.
struct unread {
	u8 *state, *ring;
	u64 tail, size;
};

// Waits for one, and changes it with interrupts off.
static int with_unread(void (*change)(struct unread *found))
{
	unsigned long until = jiffies + 10 * HZ, flags;
	int result = find_area(), cpu;
	struct unread found;
	if (result)
		return result;
	if (!*(u64 *)(area + GATE_BOARD + BOARD_SIM_DATA))
		return -ENODEV;
	found.size = *(u32 *)(anywhere(*(u64 *)(area + GATE_BOARD + BOARD_SIM_DATA)) + CONFIG_RING_SIZE);
	while (time_before(jiffies, until)) {
		local_irq_save(flags);
		for_each_online_cpu(cpu) {
			u8 *entry = area + GATE_CPUS + cpu * GATE_CPU_SIZE;
			found.state = anywhere(*(u64 *)(entry + CPU_STATE));
			found.ring = *(u64 *)(area + GATE_BOARD + BOARD_RINGS) ? (u8 *)*(u64 *)(entry + CPU_RING)
									       : anywhere(*(u64 *)(entry + CPU_RING));
			found.tail = READ_ONCE(*(u64 *)(entry + CPU_TAIL));
			if (READ_ONCE(*(u64 *)(found.state + STATE_HEAD)) > found.tail) {
				change(&found);
				local_irq_restore(flags);
				return 0;
			}
		}
		local_irq_restore(flags);
		cond_resched();
	}
	return -EAGAIN;
}

// How far into the ring the record lies whose predecessor ended at HEAD.
static u64 record_at(struct unread *found, u64 head)
{
	u64 at = head & (found->size - 1);
	return found->size - at < RECORD_LIMIT ? 0 : at;
}

// A record says another process.
static void change_record(struct unread *found)
{
	*(u32 *)(found->ring + record_at(found, found->tail) + RECORD_PID_AT) += 1;
}
static int change_on(const char *argument)
{
	return with_unread(change_record);
}

// What nobody has read yet has never been.
static void remove_records(struct unread *found)
{
	WRITE_ONCE(*(u64 *)(found->state + STATE_HEAD), found->tail);
}
static int remove_on(const char *argument)
{
	return with_unread(remove_records);
}

// A record once more.
static void repeat_record(struct unread *found)
{
	u64 head = READ_ONCE(*(u64 *)(found->state + STATE_HEAD)), to = record_at(found, head);
	u8 *first = found->ring + record_at(found, found->tail);
	if (to < (head & (found->size - 1)))
		head += found->size - (head & (found->size - 1)); // none crosses the ring's end
	memmove(found->ring + to, first, *(u32 *)(first + RECORD_SIZE_AT));
	WRITE_ONCE(*(u64 *)(found->state + STATE_HEAD), head + *(u32 *)(found->ring + to + RECORD_SIZE_AT));
}
static int forge_on(const char *argument)
{
	return with_unread(repeat_record);
}

// The ring's key is another one, so that nothing that follows can be believed.
static void spoil_key(struct unread *found)
{
	*(u64 *)(found->state + STATE_KEY) += 1;
}
static int key_on(const char *argument)
{
	return with_unread(spoil_key);
}

// The first rule fits nobody any more.
static int rule_on(const char *argument)
{
	int result = find_area();
	if (result)
		return result;
	WRITE_ONCE(*(u32 *)(anywhere(*(u64 *)(area + GATE_BOARD + BOARD_SIM_DATA)) + RULES_PAGE), 0);
	return 0;
}

struct attack attack_gate[] = {
	{.name = "sim_change", .on = change_on, .off = nothing_off},
	{.name = "sim_remove", .on = remove_on, .off = nothing_off},
	{.name = "sim_forge", .on = forge_on, .off = nothing_off},
	{.name = "sim_key", .on = key_on, .off = nothing_off},
	{.name = "sim_rule", .on = rule_on, .off = nothing_off},
	{.name = "gate_call", .on = call_on, .off = call_off},
	{.name = "gate_code", .on = code_on, .off = nothing_off},
	{.name = "gate_board", .on = board_on, .off = nothing_off},
	{.name = "gate_answer", .on = answer_on, .off = nothing_off},
	{.name = "gate_table", .on = table_on, .off = table_off},
	{.name = "gate_entry", .on = entry_on, .off = nothing_off},
	{.name = "gate_slot", .on = slot_on, .off = nothing_off},
	{.name = "gate_abandon", .on = abandon_on, .off = nothing_off},
	{.name = "gate_storm", .on = storm_on, .off = storm_off},
	{},
};
