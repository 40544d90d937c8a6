"""What `training.demo_shop` draws a shop from: its words, its products, its queries and its customers."""
