"""What the PartWorld models are worth: a judge trained on renders, and the measures that the model card states."""
