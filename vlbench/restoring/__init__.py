"""What brings quality back after a cut: adapters, distillation, momentum, tuning."""
