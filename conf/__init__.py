"""Configuration of `sbi-run`: one yaml per class or loss that a user selects."""
