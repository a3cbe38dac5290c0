"""Validation of a dataset. Import order: report and contact_sheet, dataset, shard."""
