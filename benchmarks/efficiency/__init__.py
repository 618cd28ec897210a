"""What worlds cost: size, memory, operations and time, beside two other kinds of world model."""
