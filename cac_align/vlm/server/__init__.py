"""A vision-language model behind the OpenAI chat protocol."""
