// SPDX-License-Identifier: GPL-2.0-only
// An attack simulator for test guests. Each technique makes the one change in kernel memory that a check of Lararium's
// must find, and takes it back; the code that is put in the way does nothing but go on to what stood there before.
// It is built and loaded by tests only, in guests that they booted themselves, and shows all that it did in
// /proc/lararium_attack.
#pragma once

#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/types.h>
#include <linux/version.h>

struct attack {
  const char *name;
  // ARGUMENT is what followed the name, or an empty string. An error: nothing was changed.
  int (*on)(const char *argument);
  void (*off)(void);
  bool active;
};

// Ended by an entry with no name.
extern struct attack attack_system_calls[], attack_text[], attack_modules[], attack_processes[], attack_handlers[],
    attack_defences[], attack_credentials[], attack_bpf[], attack_registers[], attack_gate[];

// A symbol of the kernel's, exported or not, or NULL.
void *attack_symbol(const char *name);

// A change of memory that may be read-only, made while all CPUs stand still.
struct patch {
  void *at;
  u8 old[16];
  size_t length;
};
int patch_apply(struct patch *patch, void *at, const void *bytes, size_t length);
void patch_revert(struct patch *patch); // does nothing where nothing is applied
// Makes the 5-byte call or jump at AT lead to TARGET; OPCODE 0 keeps the one that is there.
int patch_branch(struct patch *patch, u8 *at, u8 opcode, const void *target);
// The first call or jump in SIZE bytes of code from BEGIN that leads to TARGET (NULL: a call to any function's start).
u8 *find_branch(u8 *begin, size_t size, const void *target);
void *branch_target(const u8 *at);
size_t symbol_size(const void *begin);

// Code that does what FUNCTION does: FUNCTION itself or a jump to it in this module with "module" as ARGUMENT, else a
// jump to it in executable memory that belongs to no module. NULL: there is no more room.
void *attack_code(const char *argument, void *function);
// Frees that memory; only when no technique is on.
void attack_code_release(void);
