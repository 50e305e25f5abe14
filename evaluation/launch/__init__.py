"""From a command line to answers: questions, prompts, processes, generation."""
