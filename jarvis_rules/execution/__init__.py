"""Running actions: content store, action cache, executor, execution log."""
