"""Everything that puts Airflow somewhere: environments, variants, services, targets."""
