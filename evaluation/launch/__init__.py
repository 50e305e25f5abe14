"""This room leads from a command line to answers: questions, prompts, processes, generation."""
