/* A guest without an operating system, for what needs a CPU in long mode and nothing else: tests and measurements of
 * write protection and of the gate, also under KVM where no kernel boots. It does what its serial port says:
 *
 *   start CPU JOB [name=value ...]   gives a CPU a job: write, call, gate, compute, registers. Names: limit, address, pause
 *   stop CPU                         takes it back
 *   counts CPU                       what it has done
 *   set NAME VALUE                   awake, spins, default_verdict of struct bare_control
 *   store ADDRESS VALUE              one write of 8 bytes, by the first CPU
 *   load ADDRESS
 *   limit SELECTOR                   of a segment, by `lsl`, which not every KVM that emulates has
 *   hello                            how many CPUs there are
 *
 * Each is answered by a line: "ok ..." or "error ...". While a CPU waits in the host for a write, so does its serial
 * port if it is the first one. */
#include "layout.h"

#include <stdbool.h>
#include <stddef.h>

#define SERIAL 0x3f8
#define FW_CFG 0x510
#define APIC 0xfee00000UL
#define WAKE_VECTOR 0x40
#define SPURIOUS_VECTOR 0xff
#define OTHER_CODE 0x8000 /* below 1 MiB, page-aligned: where the other CPUs begin */

extern char start_other[], start_other_end[], exception_entries[], call_site[], hooked_function[];
extern uint64_t interrupt_table[256][2];
void wake_entry(void);
uint64_t call_hooked_function(volatile uint64_t *counter);
uint64_t call_with_patterns(volatile uint64_t *counter, volatile uint64_t *changed);
void run_cpu(uint32_t number);
void report_exception(const uint64_t *stack);

static struct bare_control *const control = (struct bare_control *)BARE_CONTROL;

static inline void out8(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline void out16(uint16_t port, uint16_t value) { __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }
static inline uint8_t in8(uint16_t port) {
  uint8_t value;
  __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}
static inline uint64_t clock(void) {
  uint32_t low, high;
  __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
  return (uint64_t)high << 32 | low;
}
static inline void relax(void) { __asm__ volatile("pause"); }
static volatile uint32_t *apic(uint32_t offset) { return (volatile uint32_t *)(APIC + offset); }

/* --- serial port */

static bool has_input(void) { return in8(SERIAL + 5) & 1; }

static void put_char(char c) {
  while (!(in8(SERIAL + 5) & 0x20))
    relax();
  out8(SERIAL, (uint8_t)c);
}

static void put(const char *text) {
  for (; *text; ++text)
    put_char(*text);
}

static void put_number(uint64_t value) {
  char digits[20];
  int n = 0;
  do
    digits[n++] = (char)('0' + value % 10);
  while (value /= 10);
  while (n)
    put_char(digits[--n]);
}

static void put_field(const char *name, uint64_t value) {
  put_char(' ');
  put(name);
  put_char('=');
  put_number(value);
}

void report_exception(const uint64_t *stack) {
  uint64_t address;
  __asm__ volatile("mov %%cr2, %0" : "=r"(address));
  put("exception");
  put_field("number", stack[0]);
  put_field("code", stack[1]);
  put_field("rip", stack[2]);
  put_field("address", address);
  put("\n");
}

/* --- jobs */

/* The hook of the design: the event in a slot, then the bell, which stops this CPU in the host until it is answered. A
 * monitor that is awake answers without. */
static uint64_t ask(uint32_t number, struct bare_cpu *cpu, uint64_t argument) {
  struct bare_slot *slot = (struct bare_slot *)(BARE_SLOTS + number * 4096UL);
  volatile uint8_t *bell = (volatile uint8_t *)(BARE_BELLS + number * (uint64_t)BARE_BLOCK);
  slot->event = slot->event + 1;
  slot->argument = argument;
  slot->verdict = control->default_verdict;
  __atomic_store_n(&slot->state, BARE_SLOT_ASKED, __ATOMIC_SEQ_CST); /* before `awake` is looked at */
  if (control->awake)
    for (uint64_t i = control->spins; i != 0 && slot->state == BARE_SLOT_ASKED; --i)
      relax();
  if (slot->state == BARE_SLOT_ASKED) {
    cpu->rung = cpu->rung + 1;
    *bell = (uint8_t)slot->event;
  }
  if (__atomic_load_n(&slot->state, __ATOMIC_ACQUIRE) != BARE_SLOT_ANSWERED)
    cpu->unanswered = cpu->unanswered + 1;
  const uint64_t verdict = slot->verdict;
  slot->state = BARE_SLOT_IDLE;
  return verdict;
}

static void compute(void) {
  uint64_t value = 1;
  for (int i = 0; i < 4096; ++i) {
    value = value * 6364136223846793005UL + 1442695040888963407UL;
    __asm__ volatile("" : "+r"(value));
  }
}

static void note_result(struct bare_cpu *cpu, uint64_t result, uint64_t when_allowed) {
  cpu->result = result;
  if (result != when_allowed)
    cpu->denied = cpu->denied + 1;
}

static void do_round(uint32_t number, struct bare_cpu *cpu, uint64_t job) {
  switch (job) {
  case BARE_JOB_WRITE: *(volatile uint64_t *)cpu->address = *(volatile uint64_t *)cpu->address + 1; break;
  case BARE_JOB_CALL: note_result(cpu, call_hooked_function(&cpu->allowed), 0); break;
  case BARE_JOB_REGISTERS: note_result(cpu, call_with_patterns(&cpu->allowed, &cpu->changed), BARE_PATTERN); break;
  case BARE_JOB_GATE:
    if (ask(number, cpu, cpu->rounds) == 0)
      call_hooked_function(&cpu->allowed);
    else
      cpu->denied = cpu->denied + 1;
    break;
  default: compute(); break;
  }
}

/* Works for about a millisecond or two of most clocks, if there is something to do. */
static bool work(uint32_t number) {
  struct bare_cpu *cpu = &control->cpu[number];
  const uint64_t slice = 4000000, begin = clock();
  if (cpu->job == BARE_JOB_NONE)
    return false;
  if (cpu->rounds == 0)
    cpu->began = begin;
  do {
    const uint64_t job = cpu->job;
    if (job == BARE_JOB_NONE)
      break;
    do_round(number, cpu, job);
    cpu->rounds = cpu->rounds + 1;
    cpu->ended = clock();
    if (cpu->rounds == cpu->limit)
      cpu->job = BARE_JOB_NONE;
    if (cpu->pause != 0)
      for (const uint64_t until = clock() + cpu->pause; clock() < until && cpu->job != BARE_JOB_NONE;)
        relax();
  } while (clock() - begin < slice);
  return true;
}

/* --- commands */

static bool same(const char *a, const char *b) {
  while (*a && *a == *b)
    ++a, ++b;
  return *a == *b;
}

static bool parse(const char *text, uint64_t *value) {
  const bool hex = text[0] == '0' && text[1] == 'x';
  uint64_t result = 0;
  if (hex)
    text += 2;
  if (!*text)
    return false;
  for (; *text; ++text) {
    const char c = *text;
    if (c >= '0' && c <= '9')
      result = result * (hex ? 16 : 10) + (uint64_t)(c - '0');
    else if (hex && c >= 'a' && c <= 'f')
      result = result * 16 + (uint64_t)(c - 'a' + 10);
    else
      return false;
  }
  *value = result;
  return true;
}

static bool parse_cpu(const char *text, uint64_t *number) { return parse(text, number) && *number < control->cpus; }

static const char *start_job(int count, char **words) {
  static const char *const names[] = {"none", "write", "call", "gate", "compute", "registers"};
  uint64_t number, job = BARE_JOB_NONE;
  if (count < 3 || !parse_cpu(words[1], &number))
    return "no such CPU";
  for (uint64_t i = 1; i < sizeof names / sizeof names[0]; ++i)
    if (same(words[2], names[i]))
      job = i;
  if (job == BARE_JOB_NONE)
    return "no such job";
  struct bare_cpu *cpu = &control->cpu[number];
  if (cpu->job != BARE_JOB_NONE)
    return "it has a job";
  cpu->address = BARE_TARGETS + number * BARE_BLOCK;
  cpu->limit = cpu->pause = 0;
  for (int i = 3; i < count; ++i) {
    char *value = words[i];
    while (*value && *value != '=')
      ++value;
    if (!*value)
      return "not name=value";
    *value++ = 0;
    volatile uint64_t *const field = same(words[i], "limit")     ? &cpu->limit
                                     : same(words[i], "address") ? &cpu->address
                                     : same(words[i], "pause")   ? &cpu->pause
                                                                 : NULL;
    uint64_t parsed;
    if (field == NULL || !parse(value, &parsed))
      return "no such option";
    *field = parsed;
  }
  cpu->rounds = cpu->allowed = cpu->denied = cpu->unanswered = cpu->rung = cpu->began = cpu->ended = cpu->changed = cpu->result = 0;
  cpu->job = job;
  if (number != 0) { /* wake it */
    *apic(0x310) = (uint32_t)number << 24;
    *apic(0x300) = WAKE_VECTOR;
  }
  return NULL;
}

static const char *command(int count, char **words) {
  uint64_t number, value;
  if (same(words[0], "start"))
    return start_job(count, words);
  if (same(words[0], "stop") && count == 2) {
    if (!parse_cpu(words[1], &number))
      return "no such CPU";
    control->cpu[number].job = BARE_JOB_NONE;
    return NULL;
  }
  if (same(words[0], "set") && count == 3) {
    volatile uint64_t *const field = same(words[1], "awake")             ? &control->awake
                                     : same(words[1], "spins")           ? &control->spins
                                     : same(words[1], "default_verdict") ? &control->default_verdict
                                                                         : NULL;
    if (field == NULL || !parse(words[2], &value))
      return "no such setting";
    *field = value;
    return NULL;
  }
  if (same(words[0], "store") && count == 3 && parse(words[1], &number) && parse(words[2], &value)) {
    *(volatile uint64_t *)number = value;
    return NULL;
  }
  return "no such command";
}

/* Those that answer more than ok. */
static bool query(int count, char **words) {
  uint64_t number, value;
  if (same(words[0], "counts") && count == 2 && parse_cpu(words[1], &number)) {
    const struct bare_cpu *cpu = &control->cpu[number];
    put("ok");
    put_field("job", cpu->job);
    put_field("rounds", cpu->rounds);
    put_field("allowed", cpu->allowed);
    put_field("denied", cpu->denied);
    put_field("unanswered", cpu->unanswered);
    put_field("rung", cpu->rung);
    put_field("ticks", cpu->ended - cpu->began);
    put_field("changed", cpu->changed);
    put_field("result", cpu->result);
    put("\n");
    return true;
  }
  if (same(words[0], "load") && count == 2 && parse(words[1], &number)) {
    put("ok");
    put_field("value", *(volatile uint64_t *)number);
    put("\n");
    return true;
  }
  if (same(words[0], "limit") && count == 2 && parse(words[1], &number)) {
    put("ok");
    value = 0;
    __asm__("lsl %1, %0" : "+r"(value) : "r"(number) : "cc");
    put_field("value", value);
    put("\n");
    return true;
  }
  if (same(words[0], "hello")) {
    put("ok");
    put_field("cpus", control->cpus);
    put("\n");
    return true;
  }
  return false;
}

static void execute(char *line) {
  enum { most = 8 };
  char *words[most];
  int count = 0;
  for (char *at = line; *at && count < most;) {
    while (*at == ' ')
      *at++ = 0;
    if (!*at)
      break;
    words[count++] = at;
    while (*at && *at != ' ')
      ++at;
  }
  if (count == 0 || query(count, words))
    return;
  const char *const error = command(count, words);
  if (error != NULL) {
    put("error ");
    put(error);
    put("\n");
  } else {
    put("ok\n");
  }
}

static void serve(void) {
  static char line[128];
  static unsigned length;
  while (has_input()) {
    const char c = (char)in8(SERIAL);
    if (c == '\n') {
      line[length] = 0;
      length = 0;
      execute(line);
    } else if (length < sizeof line - 1) {
      line[length++] = c;
    }
  }
}

/* --- CPUs */

static void set_gate(int vector, const void *entry) {
  const uint64_t address = (uint64_t)entry;
  interrupt_table[vector][0] = (address & 0xffff) | 0x18UL << 16 | 0x8e00UL << 32 | (address & 0xffff0000UL) << 32;
  interrupt_table[vector][1] = address >> 32;
}

/* An interrupt each millisecond or so, so that a CPU that waits looks around. */
static void start_timer(void) {
  *apic(0x0f0) = 0x100 | SPURIOUS_VECTOR;
  *apic(0x3e0) = 0xb;                   /* the clock of the bus, undivided: 1 GHz in QEMU and KVM */
  *apic(0x320) = 0x20000 | WAKE_VECTOR; /* periodic */
  *apic(0x380) = 1000000;
}

static uint32_t count_cpus(void) {
  out16(FW_CFG, 5); /* FW_CFG_NB_CPUS */
  const uint32_t low = in8(FW_CFG + 1);
  return low | (uint32_t)in8(FW_CFG + 1) << 8;
}

static void start_others(uint32_t wanted) {
  for (size_t i = 0; i < (size_t)(start_other_end - start_other); ++i)
    ((volatile char *)OTHER_CODE)[i] = start_other[i];
  *apic(0x310) = 0;
  *apic(0x300) = 0xc4500; /* INIT, to all but this one */
  for (const uint64_t until = clock() + 30000000; clock() < until;)
    relax();
  *apic(0x300) = 0xc4600 | OTHER_CODE >> 12;
  while (__atomic_load_n(&control->cpus, __ATOMIC_SEQ_CST) < wanted)
    relax();
}

void run_cpu(uint32_t number) {
  if (number == 0) {
    __builtin_memset(control, 0, sizeof *control);
    __builtin_memset((void *)BARE_SLOTS, 0, BARE_MAX_CPUS * 4096UL);
    for (int i = 0; i < 32; ++i)
      set_gate(i, exception_entries + 16 * i);
    set_gate(WAKE_VECTOR, wake_entry);
    set_gate(SPURIOUS_VECTOR, wake_entry);
    control->spins = 100000;
    control->call_site = (uint64_t)call_site;
    control->hooked_function = (uint64_t)hooked_function;
  }
  start_timer();
  __atomic_add_fetch(&control->cpus, 1, __ATOMIC_SEQ_CST);
  if (number == 0) {
    const uint32_t cpus = count_cpus();
    start_others(cpus < BARE_MAX_CPUS ? cpus : BARE_MAX_CPUS);
    control->magic = BARE_MAGIC;
  }
  for (;;) {
    if (number == 0)
      serve();
    if (!work(number))
      __asm__ volatile("sti; hlt; cli" : : : "memory");
  }
}

void *memset(void *to, int value, size_t size) {
  void *const begin = to;
  __asm__ volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(value) : "memory");
  return begin;
}
