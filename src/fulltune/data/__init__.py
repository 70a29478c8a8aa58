"""Raw rows -> Examples -> Encoded -> a store on disk -> Batches."""
