"""The thin asyncio around the core: it feeds rooms, carries out effects, and writes batches."""
