"""What a user has: files read into examples, laid out as text, tokenised, checked and split."""
