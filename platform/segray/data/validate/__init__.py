"""Validation of a dataset. Order of imports: report and contact_sheet, dataset, shard."""
