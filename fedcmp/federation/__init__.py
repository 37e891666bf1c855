"""Rounds: who trains, how a client trains, what may enter, how it is fused, evaluated, logged and saved."""
