output "queue_urls" {
  description = "The URLs of the queues, by name."
  value       = { for name, queue in local.all_queues : name => queue.url }
}

output "queue_arns" {
  description = "Their ARNs."
  value       = { for name, queue in local.all_queues : name => queue.arn }
}

output "topic_arns" {
  description = "The topics of alarms, by severity: for a pager or a chat."
  value       = { for severity, topic in aws_sns_topic.alarms : severity => topic.arn }
}

output "security_group_id" {
  description = "The task's security group: PostgreSQL's and ClickHouse's have to let it in."
  value       = aws_security_group.walhouse.id
}

output "task_role_arn" {
  description = "The role that walhouse has."
  value       = aws_iam_role.task.arn
}

output "provision_policy_arn" {
  description = "For whoever runs walhouse provision."
  value       = aws_iam_policy.provision.arn
}

output "dead_letters_policy_arn" {
  description = "For whoever runs walhouse dlq."
  value       = aws_iam_policy.dead_letters.arn
}

output "log_group" {
  description = "Where the logs are."
  value       = aws_cloudwatch_log_group.walhouse.name
}
