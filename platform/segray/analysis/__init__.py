"""What a person looks at before and after a training: what a model costs, what it is fed, how runs went."""
