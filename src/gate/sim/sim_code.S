// The linked code of sim_code.cpp, as bytes.
    .section .rodata.lararium_sim, "a", @progbits
    .globl lararium_sim_code, lararium_sim_code_end
lararium_sim_code:
    .incbin SIM_CODE
lararium_sim_code_end:
    .section .note.GNU-stack, "", @progbits
