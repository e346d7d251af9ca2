"""What other trainers compute of the batches that ours see."""
