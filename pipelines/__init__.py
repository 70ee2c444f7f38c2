"""Order: what runs after what. Imports `stages`, `model` and `infra`; nothing imports it."""
