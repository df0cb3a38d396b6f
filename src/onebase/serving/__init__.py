"""One process answers for every task over HTTP, in the shapes of OpenAI's API."""
