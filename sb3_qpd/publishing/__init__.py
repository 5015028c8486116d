"""Publishing: a student on the Hugging Face Hub."""
