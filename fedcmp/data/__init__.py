"""Image-caption pairs: records, sources, partitions into clients, frozen-feature cache, batches. Knows no ranks."""
