"""The only room where anything is decided: pure, standard library only, no I/O, clock or randomness of its own."""
